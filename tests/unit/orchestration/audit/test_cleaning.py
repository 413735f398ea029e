"""stage=clean: what is needed stays, the rest goes when somebody agrees."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.defaults import default_config
from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, link_folder
from pipeline.core.errors import Busy, ConfigError
from pipeline.orchestration.audit import cleaning
from pipeline.orchestration.runner import GRAPH_LOCK, hold
from pipeline.stages import clean
from tests.made_artifacts import make_artifact
from tests.mlflow_registry import FakeRegistry, mlflow_registry

MIB = 2**20


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    with mlflow_registry() as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.chdir(tmp_path)
        yield found


def build(name: str, content: bytes, inputs: dict[str, Artifact] | None = None) -> Artifact:
    return make_artifact(Path("artifacts"), name.rpartition("/")[2].partition("-")[0], "any",
                         files={"model": content}, inputs=inputs, name=name)  # fmt: skip


@pytest.fixture
def project(registry: FakeRegistry, tmp_path: Path) -> Path:
    """Version 1 (old), 2 and 3 (champion); a build that is of none; leftovers of all kinds."""
    base = build(".variants/merge-0000000000000001", b"m" * MIB)
    for number in (1, 2, 3):
        made = build(f".variants/build-000000000000000{number}", bytes([number]) * MIB,
                     {"merge": base})  # fmt: skip
        registry.versions[number] = {"digest.build": made.manifest.digest}
    registry.aliases["champion"] = 3
    build(".variants/build-000000000000000f", b"free" * MIB)
    before = build(".variants/import-000000000000000a", b"i")
    build("merge", b"present", {"import": before})
    artifacts = tmp_path / "artifacts"
    for name in (".work/finetune-1/.scratch/checkpoint", ".tracking/embedded/rejected/1.jsonl",
                 ".tracking/embedded/spool/2.jsonl", "mlflow/mlflow.db", "mlflow/mlflow.db.abc",
                 "sweeps/night/0/result.json", ".variants/build-torn/model"):  # fmt: skip
        (artifacts / name).parent.mkdir(parents=True, exist_ok=True)
        (artifacts / name).write_text("x" * 5000)
    (tmp_path / "dvc.lock.broken").write_text("{")
    return artifacts


def configured(**settings: Any) -> Config:
    given = {f"clean.{name}": value for name, value in settings.items()}
    return default_config({"register.name": "bank", "artifacts": "artifacts", **given})


def left(artifacts: Path) -> set[str]:
    return {p.name for p in (artifacts / ".variants").iterdir() if p.name != ".verified"}


NEEDED = {"merge-0000000000000001", *(f"build-000000000000000{n}" for n in (1, 2, 3)),
          "import-000000000000000a"}  # fmt: skip


def test_what_is_registered_or_present_stays(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean.run(configured(confirm=True))
    assert left(project) == NEEDED
    assert not (project / ".tracking/embedded/rejected/1.jsonl").exists()
    assert not (project / "mlflow/mlflow.db.abc").exists()
    assert not Path("dvc.lock.broken").exists()
    for name in ("merge/model", "mlflow/mlflow.db", ".tracking/embedded/spool/2.jsonl",
                 ".work/finetune-1/.scratch/checkpoint", "sweeps/night/0"):  # fmt: skip
        assert (project / name).exists(), name
    said = capsys.readouterr()
    assert "✓ removed 5 things: 4.0 MiB are free" in said.err
    assert "of version 3 (champion)" in said.out
    assert "artifacts/merge was made from it" in said.out
    clean.run(configured(confirm=True))
    assert "nothing to remove" in capsys.readouterr().err


def test_interrupted_runs_and_sweeps_go_when_they_are_named(project: Path) -> None:
    clean.run(configured(what=["work", "sweeps"], confirm=True))
    assert not (project / ".work/finetune-1").exists()
    assert not (project / "sweeps/night").exists()
    assert left(project) > NEEDED


def test_old_versions_go_and_those_with_an_alias_stay(
    project: Path, registry: FakeRegistry
) -> None:
    clean.run(configured(keep_versions=0, confirm=True))
    gone = {f"build-000000000000000{n}" for n in (1, 2)}
    assert left(project) == NEEDED - gone
    registry.versions[3]["forgotten"] = "2026: trained on a conversation that is to be forgotten"
    clean.run(configured(confirm=True))
    assert left(project) == NEEDED - gone  # it is still champion
    registry.aliases.clear()
    clean.run(configured(confirm=True))
    assert left(project) == {"import-000000000000000a"}


def test_nothing_goes_that_is_new_or_that_nobody_agreed_to(
    project: Path, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(project.rglob("*"))
    clean.run(configured(older_than=1, confirm=True))
    assert "changed in the last 1 days" in capsys.readouterr().out
    clean.run(configured(what=[], confirm=True))
    with pytest.raises(ConfigError, match=r"5 things, which take 4\.0 MiB.*clean\.confirm=true"):
        clean.run(configured())
    registry.status = 500
    clean.run(configured(what=["variants", "sweeps"], confirm=True, older_than=0))
    assert "the registry does not answer, so it may be registered" in capsys.readouterr().out
    kept = [p for p in before if p.name not in ("build-torn", "model", "night", "0", "result.json")]
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize(
    ("place", "lock"), [("", GRAPH_LOCK), ("", ".lock"), ("sweeps/night", ".lock")]
)
def test_a_run_that_is_going_on_is_left_alone(project: Path, place: str, lock: str) -> None:
    with hold(project / place, lock), pytest.raises(Busy):
        clean.run(configured(confirm=True))
    assert left(project) > NEEDED


def test_a_file_that_something_else_links_to_frees_nothing(project: Path) -> None:
    link_folder(project / "merge", project / "sweeps/night/0/merge")
    (project / "merge/big").write_bytes(b"b" * MIB)
    os.link(project / "merge/big", project / "sweeps/night/0/big")
    os.link(project / "merge/big", project / "sweeps/night/0/again")
    (project / "sweeps/night/0/own").write_bytes(b"o" * MIB)
    item = cleaning.Item("sweeps", project / "sweeps/night", 0, 0)
    assert MIB <= cleaning.freed([item]) < 2 * MIB
    other = cleaning.Item("variants", project / "merge", 0, 0)
    assert cleaning.freed([item, other]) >= 2 * MIB
