"""Where a conversation is, and how it is forgotten."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.defaults import default_tree
from pipeline.config.schema import Config, load
from pipeline.core.errors import Busy, ConfigError, DataError
from pipeline.data import snapshots
from pipeline.data.dataset import Row, write_split
from pipeline.data.forgotten import NAME, add_forgotten, read_forgotten
from pipeline.data.preparation.sources import Source
from pipeline.data.reading import Options, read_file
from pipeline.data.rows import Conversation, Rejected
from pipeline.orchestration.runner import GRAPH_LOCK, hold
from pipeline.stages import lineage as stage
from tests.made_artifacts import make_artifact
from tests.mlflow_registry import FakeRegistry, mlflow_registry

SECRET = "My account number is 1234567"


def turns(*said: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


FIRST = turns("Hello there", "Hello! How can I help?")
WANTED = [*FIRST, *turns(f"{SECRET}, close it", "It is closed.")]
LONGER = [*WANTED, *turns("Thanks", "You are welcome.")]
OTHER = turns("How do I freeze my card?", "Open the app.")


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def dataset(folder: Path, name: str, **splits: list[list[dict[str, Any]]]) -> str:
    """A dataset's folder; its digest."""
    place = folder / name
    place.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        test = {"prompt_ids": [1], "answer": "x"} if split == "test" else {}
        rows = [
            Row(messages, [1], [1], f"data/x.jsonl:{i}", **test)  # type: ignore[arg-type]
            for i, messages in enumerate(splits.get(split, []), 1)
        ]
        write_split(place, split, rows)
    files = {file.name: file.read_bytes() for file in place.iterdir()}
    return make_artifact(folder, "prepare", "dataset", files=files, name=name).manifest.digest


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    with mlflow_registry() as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.chdir(tmp_path)
        yield found


@pytest.fixture
def project(registry: FakeRegistry, tmp_path: Path) -> Path:
    """Version 2, champion, was trained on it, version 1 was not; version 3's dataset is gone."""
    artifacts, data = tmp_path / "artifacts", tmp_path / "data"
    seen = dataset(artifacts, "prepare", train=[WANTED, OTHER], test=[OTHER])
    unseen = dataset(artifacts, ".variants/prepare-0123456789abcdef", train=[OTHER])
    for number, digest in ((1, unseen), (2, seen), (3, "9" * 64)):
        registry.versions[number] = {"digest.prepare": digest, "store": "s3://models/bank"}
    registry.aliases["champion"] = 2
    write(data / "train.jsonl", {"messages": OTHER}, {"messages": WANTED})
    write(data / "test.jsonl", {"messages": OTHER})
    row = {"messages": WANTED, "request_id": "1", "model": "bank"}
    write(data / "recorded/1.jsonl", {"messages": OTHER}, row, {"messages": FIRST})
    write(tmp_path / "reviewed/a.jsonl", row, {"messages": LONGER})
    write(tmp_path / "reviewed/b.jsonl", {"messages": WANTED})
    pair = {"messages": WANTED[:-1], "chosen": "It is closed.", "rejected": "No.", "source": "x"}
    write(tmp_path / "feedback/pairs/a.jsonl", pair, {**pair, "messages": OTHER[:1]})
    (artifacts / "inspection.html").write_text(f"<p>{SECRET}, close it</p>")
    return tmp_path


def configured(**lineage: Any) -> Config:
    tree = default_tree()
    tree["model"] = {**tree["model"], "name": "bank"}
    tree["data"] = {**tree["data"], "folder": "data", "train": ["train.jsonl"],
                    "test": ["test.jsonl"], "sources": []}  # fmt: skip
    tree["retrain"]["recordings"] = "reviewed"
    tree["serve"]["feedback"] = "feedback"
    tree["register"]["name"] = "bank"
    tree["lineage"] |= {"format": "json", **lineage}
    return load(tree)


def ask(capsys: pytest.CaptureFixture[str], **lineage: Any) -> dict[str, Any]:
    capsys.readouterr()
    stage.run(configured(**lineage))
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("wanted", ["my ACCOUNT  number is 1234567", "row.jsonl"])
def test_which_versions_have_seen_it(
    project: Path, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    write(project / "row.jsonl", {"messages": WANTED})
    said = ask(capsys, conversation=wanted)
    found = {(row["file"], row["line"]): row["origin"] for row in said["rows"]}
    more = {("data/recorded/1.jsonl", 3): "snapshot"} if wanted == "row.jsonl" else {}
    assert found == {
        ("data/recorded/1.jsonl", 2): "snapshot",
        ("reviewed/a.jsonl", 1): "recording",
        ("reviewed/a.jsonl", 2): "recording",
        ("reviewed/b.jsonl", 1): "recording",
        ("feedback/pairs/a.jsonl", 1): "feedback",
        ("data/train.jsonl", 2): "file",
        **more,
    }
    assert [each["rows"] for each in said["datasets"]] == [{"train": ["data/x.jsonl:1"]}]
    trained = {each["version"]: each["trained"] for each in said["versions"]}
    assert trained == {1: False, 2: True, 3: None}
    assert said["quoted_in"] == ["artifacts/inspection.html"]


def test_the_text_says_it_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run(configured(conversation=SECRET, format="table"))
    out = capsys.readouterr().out
    assert re.search(r"version 2 \(champion\) +trained on 1 row\b", out)
    assert "cannot be told: its dataset 999999999999 is not here" in out
    assert "has not seen it" in out
    assert "data/train.jsonl:2" in out


def test_it_is_removed_listed_and_marked_and_the_retraining_is_planned(
    project: Path, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project / "row.jsonl", {"messages": WANTED})
    by_hand = (project / "data/train.jsonl").read_bytes()
    said = ask(capsys, conversation="row.jsonl", forget=True, confirm=True)["forgotten"]
    assert (project / "data/train.jsonl").read_bytes() == by_hand
    left = (project / "data/recorded/1.jsonl").read_text().splitlines()
    assert [json.loads(line)["messages"] for line in left] == [OTHER]
    assert not (project / "reviewed/a.jsonl").exists()
    assert not (project / "reviewed/b.jsonl").exists()
    assert len((project / "feedback/pairs/a.jsonl").read_text().splitlines()) == 1
    assert said["marked"] == [2]
    assert "trained on a conversation that is to be forgotten" in registry.versions[2]["forgotten"]
    assert "forgotten" not in registry.versions[1]
    assert not said["problems"]
    plan = " | ".join(said["plan"])
    for part in (
        "remove from your own files: data/train.jsonl:2",
        "retrain without it: python -m pipeline stage=all",
        "champion is version 2 (champion)",
        "serve none of the versions 2",
        "remove their files from s3://models/bank",
        "of the versions 3 nobody can tell",
        "stage=clean",
        "artifacts/inspection.html",
    ):
        assert part in plan
    assert SECRET not in (project / "data/recorded" / NAME).read_text()


def test_what_was_forgotten_comes_back_by_no_way(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project / "row.jsonl", {"messages": WANTED})
    ask(capsys, conversation="row.jsonl", forget=True, confirm=True)
    forgotten = read_forgotten(project / "data/recorded")
    file = write(project / "late.jsonl", *({"messages": m} for m in (WANTED, LONGER, OTHER, FIRST)))
    source = Source(file, "late.jsonl", Options(), forgotten=forgotten)
    rows = [source.asked(row)[0] for row in read_file(file, "late.jsonl")]
    assert [isinstance(row, Conversation) for row in rows] == [False, False, True, False]
    refused = rows[0]
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.excerpt) == ("forgotten", "")
    (project / "again").mkdir()
    file.rename(project / "again/late.jsonl")
    found = snapshots.find_new(project / "again", project / "data/recorded")
    assert (found.new, found.known, found.forgotten) == ([], 1, 3)
    # Others who begin with the same greeting are not forgotten with it.
    greeted = Conversation("x", 1, [*FIRST, *turns("A question", "An answer")], "")
    assert forgotten.check(greeted) is greeted
    assert isinstance(forgotten.check(replace(greeted, messages=[*FIRST])), Rejected)


def test_nothing_is_removed_unless_somebody_agrees(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in project.rglob("*.jsonl")}
    with pytest.raises(ConfigError, match=r"rows of 4 files .* lineage\.confirm=true"):
        ask(capsys, conversation=SECRET, forget=True)
    config = configured(conversation=SECRET, forget=True, confirm=True)
    with hold(config.artifacts, GRAPH_LOCK), pytest.raises(Busy):
        stage.run(config)
    with pytest.raises(DataError, match="nothing to forget"):
        ask(capsys, conversation="was never said", forget=True, confirm=True)
    assert {file: file.read_bytes() for file in project.rglob("*.jsonl")} == before


def test_a_file_that_a_server_writes_is_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project / "reviewed/c.jsonl.part", {"messages": WANTED})
    said = ask(capsys, conversation=SECRET, forget=True, confirm=True)
    assert said["being_written"] == ["reviewed/c.jsonl.part"]
    assert any("when the server has completed" in line for line in said["forgotten"]["plan"])


def test_a_registry_that_is_down_keeps_nothing_from_being_forgotten(
    project: Path, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.status = 403
    said = ask(capsys, conversation=SECRET, forget=True, confirm=True)
    assert said["versions"] == []
    assert len(said["forgotten"]["changed"]) == 4


@pytest.mark.parametrize("wanted", ["abc", "  a  "])
def test_too_short_a_text_is_refused(project: Path, wanted: str) -> None:
    with pytest.raises(ConfigError, match="too short to look for"):
        stage.run(configured(conversation=wanted))


def test_a_list_that_cannot_be_read_stops_prepare(tmp_path: Path) -> None:
    file = add_forgotten(tmp_path, ["a" * 64])
    assert add_forgotten(tmp_path, ["b" * 64], ["a" * 64, "c" * 64]) == file
    found = read_forgotten(tmp_path)
    assert (found.keys, found.alone) == ({"a" * 64, "b" * 64}, {"c" * 64})
    for content in ("{", "[]", '{"conversations": [{}]}', '{"conversations": [{"sha256": "a"}]}'):
        file.write_text(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_forgotten(tmp_path)
