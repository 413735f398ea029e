"""inspect: the decisions of prepare, shown; a page that stands alone; nothing else is written."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from pipeline.__main__ import main
from pipeline.config.schema import Config
from pipeline.core.errors import DataError, ResourceError
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.stages import inspect, prepare
from tests.unit.model_folders import add_random_weights, add_weights, make_model_folder
from tests.unit.stages import test_prepare
from tests.unit.stages.test_prepare import pair, write

ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_weights(make_model_folder(tmp_path_factory.mktemp("model"), "chatml"), 512)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows with one of everything that is to be seen."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(
        folder / "train.jsonl",
        {**pair("What is a wire fee?", "A wire costs five dollars."), "tags": ["fee"]},
        {**pair("Was kostet eine Überweisung?", "Fünf Euro."), "tags": ["fee"], "lang": "de-DE"},
        {**pair("How do I open an account?", "You visit a branch."), "language": "fr"},
        pair("What is a wire fee?", "A wire costs  five dollars."),
        pair("what is a wire fee", "A wire costs five dollars"),
        pair("What is a wire fee?", "Nothing at all."),
        pair("How do I get a mortgage", "Anywhere."),
        pair("And now?", "word " * 600),
        {**pair("What of this?", "Nothing."), "reward_model": 1},
        "{",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "May I ask?"},
                {"role": "assistant", "content": "You may.", "weight": 0},
                {"role": "user", "content": "Where is a branch?"},
                {"role": "assistant", "content": "In the old town."},
            ]
        },
        pair(f"What is {ATTACK}?", f"It is {ATTACK}."),
    )
    write(folder / "test.jsonl", pair("How do I get a mortgage?", "In a branch."))
    return folder


def configure(tree: dict[str, Any], model: Path, data: Path, **settings: Any) -> Config:
    return test_prepare.configure(tree, model, data, **{"max_length": 512, **settings})


def showing(config: Config, page: Path, **changes: Any) -> Config:
    settings = config.inspect.but(page=page, **changes)
    return config.model_copy(update={"inspect": settings})


def inspected(
    config: Config, page: Path, capsys: pytest.CaptureFixture[str], **changes: Any
) -> dict[str, Any]:
    capsys.readouterr()
    inspect.run(showing(config, page, format="json", **changes))
    return dict(json.loads(capsys.readouterr().out))


def test_what_is_found(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    found = inspected(configure(tree, model, data), tmp_path / "page.html", capsys)
    assert found["rows"] == {"read": 13, "kept": 7, "rejected": 6}
    reasons = {reason: group["rows"] for reason, group in found["examples"].items()}
    assert reasons == dict.fromkeys(
        ("exact duplicate", "near duplicate", "leaks a test question", "too long", "unused field",
         "bad JSON"), 1,
    )  # fmt: skip
    (leak,) = found["examples"]["leaks a test question"]["first"]
    assert leak["place"].endswith("train.jsonl:7")
    assert "prepare.leak_threshold" in found["examples"]["leaks a test question"]["advice"]
    assert found["rejected_fields"] == {"unused field": {"reward_model": 1}}
    assert found["conflicts"] == 1
    assert found["turns"] == {"2": 6, "4": 1}
    assert found["shapes"]["one question and answer"] == 6
    assert found["shapes"]["with a system turn"] == 1
    assert found["shapes"]["with answers that are context (weight 0)"] == 1
    assert found["tags"] == [{"tag": "fee", "rows": 2}]
    languages = {one["language"]: one for one in found["languages"]}
    assert languages["de"]["rows"] == languages["de"]["named_so"] == 1
    assert languages["en"]["named_otherwise"] == {"fr": 1}
    assert found["problem"] == ""
    files = {Path(name).name: counts for name, counts in found["files"].items()}
    assert files["train.jsonl"]["tokens"] + files["test.jsonl"]["tokens"] == sum(
        split["tokens"] for split in found["splits"].values()
    )


def test_it_decides_as_prepare_does(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    config = configure(tree, model, data, validation_share=0.3, mixture=["train.jsonl: 2"])
    (tmp_path / "out").mkdir()
    prepare.run(config, {}, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "statistics.json").read_text())
    found = inspected(config, tmp_path / "page.html", capsys)
    for name, counts in made.pop("files").items():
        assert found["files"][name].items() >= counts.items()
    assert {name: found[name] for name in made} == made
    text = (tmp_path / "page.html").read_text()
    assert "Mixture" in text
    assert "stage=prepare would take these files" in text


def test_what_prepare_would_refuse_is_shown(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    config = configure(tree, model, data, max_reject_share=0.1)
    with pytest.raises(DataError) as refused:
        prepare.run(config, {}, tmp_path)
    found = inspected(config, tmp_path / "page.html", capsys)
    assert found["problem"].partition(": ")[0] == str(refused.value).partition(": ")[0]
    assert "stage=prepare would refuse these files" in (tmp_path / "page.html").read_text()


class Elements(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.text, self.marked, self._mark = "", "", 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self._mark += tag == "mark"

    def handle_endtag(self, tag: str) -> None:
        self._mark -= tag == "mark"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._mark:
            self.marked += data + "|"


def test_the_page_stands_alone_and_html_in_data_is_text(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    row = {**pair("Who is it?", "Nobody."), "tags": [ATTACK], "lang": ATTACK}
    write(data / f"train{ATTACK.replace('/', '')}.jsonl", row, {**pair("A", "B"), ATTACK: 1},
          ATTACK)  # fmt: skip
    inspected(configure(tree, model, data), tmp_path / "page.html", capsys)
    page = Elements((tmp_path / "page.html").read_text())
    assert not page.tags & {"script", "img", "link", "iframe", "object", "a", "base", "form"}
    assert not [name for name in page.names if name.startswith("on") or name in ("src", "href")]
    assert page.text.count("<script>alert('x')</script>") >= 3
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_the_page_marks_what_is_trained_on(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    inspected(configure(tree, model, data), tmp_path / "page.html", capsys)
    page = Elements((tmp_path / "page.html").read_text())
    assert "In the old town.<|im_end|>" in page.marked
    assert "You may." in page.text
    assert "You may." not in page.marked
    assert "Where is a branch?" not in page.marked
    inspected(configure(tree, model, data), tmp_path / "page.html", capsys, samples=0)
    assert "In the old town." not in Elements((tmp_path / "page.html").read_text()).marked


def test_pairs_and_plain_text(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    row = {"prompt": "How is it?", "chosen": "It is well.", "rejected": "Bad."}
    write(data / "train.jsonl", row)
    config = configure(tree, model, data, objective="dpo")
    assert inspected(config, tmp_path / "page.html", capsys)["shapes"] == {
        "one question and answer": 2,
        "pairs of a better and a worse answer": 1,
    }
    assert '<mark class="worse">' in (tmp_path / "page.html").read_text()
    write(data / "train.jsonl", {"text": "A long story about a bank."})
    found = inspected(configure(tree, model, data), tmp_path / "page.html", capsys)
    assert found["shapes"]["plain text"] == 1


def test_files_without_rows(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    write(data / "train.jsonl")
    write(data / "test.jsonl")
    found = inspected(configure(tree, model, data), tmp_path / "page.html", capsys)
    assert found["languages"] == []
    assert "no row is left for the train split" in found["problem"]
    inspect.run(showing(configure(tree, model, data), tmp_path / "page.html"))
    assert "would refuse these files" in capsys.readouterr().out


def test_tokens_that_the_model_cannot_say_are_named(
    tree: dict[str, Any], data: Path, tmp_path: Path, capsys: Any
) -> None:
    model = add_random_weights(make_model_folder(tmp_path / "model", "demo"))
    tensors = load_file(model / "model.safetensors")
    tokens = Chat.load(model).encode(" dollars")
    tensors["lm_head.weight"][[*tokens, 300, 301, 302, 303]] = 0.1  # each other's like
    save_file(tensors, model / "model.safetensors")
    found = inspected(configure(tree, model, data), tmp_path / "page.html", capsys)
    assert found["untrained_tokens"]["count"] > 0
    assert "Tokens that the model cannot say" in (tmp_path / "page.html").read_text()


def test_the_command_writes_its_page_alone_and_needs_no_project(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    place = tmp_path / "anywhere"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    given = ["model=local", "model.name=tiny", f"model.path={model}", "data=files",
             f"data.folder={data}", "data.train=[train.jsonl]", "data.test=[test.jsonl]",
             "prepare.max_length=512"]  # fmt: skip
    assert main(["stage=inspect", *given, "inspect.page=seen.html"]) == 0
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert after.keys() - before.keys() == {place / "seen.html"}
    assert before.items() <= after.items()
    said = capsys.readouterr()
    for text in (
        "leaks of test questions: 1",
        "train.jsonl:7: asks what",
        "Languages",
        "with a system turn",
        "fee",
        "trained on",
    ):
        assert text in said.out
    assert "The page: seen.html" in said.err
    assert main(["stage=inspect", *given, "finetune.max_steps=5"]) == 2
    assert "finetune.max_steps" in capsys.readouterr().err


def test_a_page_that_cannot_be_written(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = showing(configure(tree, model, data), tmp_path / "file" / "page.html")
    with pytest.raises(ResourceError, match=r"inspect\.page=.*cannot be written.*name another"):
        inspect.run(config)
