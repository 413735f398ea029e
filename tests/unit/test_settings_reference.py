"""The generated page of settings: today's schema, and each kind of field in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from pipeline.config.schema import Config
from tools import settings_reference
from tools.settings_reference import PAGE, Defaults, Part, read_defaults, read_parts, render


class Inner(BaseModel):
    share: Annotated[float, Field(ge=0, le=1)]


class Local(BaseModel):
    """Here."""

    name: Literal["local"] = Field(description="where")


class Cluster(BaseModel):
    """There."""

    name: Literal["cluster"] = Field(description="where")
    account: str = Field(description="who pays")


class Tuning(BaseModel):
    """How to tune."""

    rate: float = Field(gt=0, description="how fast")
    length: int | None = Field(ge=8, description="how long")
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, description="how large")
    inner: Inner
    bounds: Mapping[str, Annotated[float, Field(le=1)]] = Field(description="how far")
    kind: Literal["a", "b"] = Field(description="which one")


class Whole(BaseModel):
    start: int = Field(description="the first")
    tuning_: Tuning = Field(alias="tuning")
    place: Annotated[Local | Cluster, Field(discriminator="name")]


CONF = {
    "config.yaml": "defaults: [{tuning: a}, {place: local}, _self_]\nstart: 3\n",
    "tuning/a.yaml": (
        "# The first.\nrate: 0.5\nlength: null\nsizes: [1, 2]\n"
        "inner: {share: 0.1}\nbounds: {x: 1}\nkind: a\n"
    ),
    "tuning/b.yaml": "# The second.\ndefaults: [a]\nrate: 0.25\ninner: {share: 0.2}\nkind: b\n",
    "place/local.yaml": "# This machine.\nname: local\n",
    "place/cluster.yaml": "# Another.\nname: cluster\naccount: ???\n",
}


@pytest.fixture
def conf(tmp_path: Path) -> Defaults:
    for name, text in CONF.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return read_defaults(tmp_path)


@pytest.fixture
def parts(conf: Defaults) -> list[Part]:
    return read_parts(Whole, conf)


def test_page_is_of_this_schema() -> None:
    """`make docs` writes it again."""
    assert PAGE.read_text() == settings_reference.page()


def test_every_setting_has_a_meaning() -> None:
    parts = read_parts(Config, read_defaults(settings_reference.CONF))
    assert settings_reference.undescribed(parts) == []


def test_fields_are_put_in_words(parts: list[Part], conf: Defaults) -> None:
    text = render(parts, conf).replace("\N{NO-BREAK SPACE}", " ")
    assert [line for line in text.split("\n") if line.startswith("| `tuning.")] == [
        "| `tuning.rate` | number | > 0 | `0.5`; b: `0.25` | how fast |",
        "| `tuning.length` | integer or null | ≥ 8 | `null` | how long |",
        "| `tuning.sizes` | list of integers | at least 1 entry, each ≥ 1 | `[1, 2]` | how large |",
        "| `tuning.inner.share` | number | ≥ 0, ≤ 1 | `0.1`; b: `0.2` |  |",
        "| `tuning.bounds` | mapping to numbers | each ≤ 1 | `{x: 1}` | how far |",
        "| `tuning.kind` | `a` or `b` |  | `a` | which one |",
    ]
    assert "| `start` | integer |  | `3` | the first |" in text
    assert "| `tuning=a` (default) | The first. |" in text


def test_variants_have_parts_of_their_own(parts: list[Part], conf: Defaults) -> None:
    titles = [part.title for part in parts]
    assert titles == ["General", "`tuning`", "`place=local`", "`place=cluster`"]
    assert "| `place.account` | text |  | required | who pays |" in render(parts, conf)


def test_a_setting_without_meaning_is_named(parts: list[Part]) -> None:
    assert settings_reference.undescribed(parts) == ["tuning.inner.share"]


def test_page_is_refused_with_a_setting_without_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_reference, "undescribed", lambda _: ["seed"])
    with pytest.raises(SystemExit, match="no description in the schema for seed"):
        settings_reference.page()


def test_check_tells_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_reference, "ROOT", tmp_path)
    monkeypatch.setattr(settings_reference, "PAGE", tmp_path / "settings.md")
    monkeypatch.setattr(settings_reference, "page", lambda: "new\n")
    (tmp_path / "settings.md").write_text("old\n")
    monkeypatch.setattr("sys.argv", ["settings_reference", "--check"])
    assert settings_reference.main() == 1
    assert "settings.md is stale: run `make docs`" in capsys.readouterr().err
    assert (tmp_path / "settings.md").read_text() == "old\n"
    monkeypatch.setattr("sys.argv", ["settings_reference"])
    assert settings_reference.main() == 0
    monkeypatch.setattr("sys.argv", ["settings_reference", "--check"])
    assert settings_reference.main() == 0
