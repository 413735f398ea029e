"""retrain: when it runs the graph, and what it remembers of that. The graph is stood in for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import load
from pipeline.core.errors import (
    ArtifactError,
    Busy,
    ConfigError,
    GateFailed,
    ResourceError,
)
from pipeline.orchestration import compose
from pipeline.orchestration.runner import hold
from pipeline.stages import retrain
from tests.unit.data.test_snapshots import record, row

Look = Callable[..., int]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each run of the graph is to end with; what is raised if an exception. Runs take one."""
    ends: list[Any] = []

    def run_graph(tree: Any, config: Any) -> int:
        end = ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return int(end)

    monkeypatch.setattr(retrain, "run_graph", run_graph)
    monkeypatch.setattr(retrain, "refuse_other_artifacts", lambda config: None)
    return ends


@pytest.fixture
def look(tmp_path: Path) -> Look:
    def run(**settings: Any) -> int:
        tree = compose.compose([f"artifacts={tmp_path / 'artifacts'}"])
        tree["data"]["folder"] = str(tmp_path / "data")
        recorded = {"recordings": str(tmp_path / "recorded"), "min_new": 2}
        tree["retrain"] |= recorded | settings
        return retrain.run(tree, load(tree))

    return run


def snapshots(tmp_path: Path) -> list[int]:
    """Conversations of each."""
    files = sorted((tmp_path / "data/recorded").glob("*.jsonl"))
    return [len(file.read_text().splitlines()) for file in files]


def test_too_few_new_conversations_start_nothing(
    graph: list[Any], look: Look, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "recorded", "a.jsonl", row("One?"))
    assert look() == 0
    assert snapshots(tmp_path) == []
    assert "1 new conversations in" in capsys.readouterr().err


@pytest.mark.parametrize("end", [0, GateFailed.exit_code])
def test_enough_of_them_run_the_graph_once(
    end: int, graph: list[Any], look: Look, tmp_path: Path
) -> None:
    """Also where the gate refuses what comes out: the same data would be refused again."""
    record(tmp_path / "recorded", "a.jsonl", row("One?"), row("Two?"))
    graph.append(end)
    assert look() == end
    assert not graph
    assert snapshots(tmp_path) == [2]
    assert look() == 0  # which would take one more end


def test_a_run_that_did_not_end_goes_on(graph: list[Any], look: Look, tmp_path: Path) -> None:
    record(tmp_path / "recorded", "a.jsonl", row("One?"), row("Two?"))
    graph += [KeyboardInterrupt(), 9, 0]
    with pytest.raises(KeyboardInterrupt):
        look()
    assert look() == 9  # a full disk
    record(tmp_path / "recorded", "b.jsonl", row("Three?"))
    assert look() == 0
    assert not graph
    assert snapshots(tmp_path) == [2]  # the third waits for a fourth
    assert look() == 0
    assert len(json.loads((tmp_path / "artifacts" / retrain.FINISHED).read_text())) == 1


def test_it_goes_on_looking_whatever_a_look_finds(
    graph: list[Any],
    look: Look,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            record(tmp_path / "recorded", "b.jsonl", row("Two?"))
        if len(waits) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(retrain.time, "sleep", sleep)
    record(tmp_path / "recorded", "a.jsonl", row("One?"))
    graph += [ResourceError("the disk is full"), 0]
    with pytest.raises(KeyboardInterrupt):
        look(every=60)
    assert (waits, graph) == ([60.0] * 4, [])
    assert "ResourceError: the disk is full" in capsys.readouterr().err


def test_two_at_once_are_one_too_many(graph: list[Any], look: Look, tmp_path: Path) -> None:
    record(tmp_path / "recorded", "a.jsonl", row("One?"), row("Two?"))
    with hold(tmp_path / "artifacts", retrain.LOCK), pytest.raises(Busy):
        look()
    assert snapshots(tmp_path) == []


@pytest.mark.parametrize("text", ['["a.jso', "{}", "[1]", "\xff"])
def test_a_broken_list_of_what_was_trained_on_is_told_of(
    graph: list[Any], look: Look, tmp_path: Path, text: str
) -> None:
    record(tmp_path / "recorded", "a.jsonl", row("One?"))
    (tmp_path / "artifacts").mkdir()
    file = tmp_path / "artifacts" / retrain.FINISHED
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"\.retrain\.json, .* cannot be read .*: delete it"):
        look()
    file.unlink()
    assert look() == 0


def test_a_look_that_never_comes_is_refused_before_the_first(
    graph: list[Any], look: Look, tmp_path: Path
) -> None:
    record(tmp_path / "recorded", "a.jsonl", row("One?"), row("Two?"))
    with pytest.raises(ConfigError, match=r"retrain\.every=1000000000000\.0: .* equal to 31622400"):
        look(every=1e12)
    assert snapshots(tmp_path) == []


def test_where_to_look_must_be_said_and_be_another_place(
    graph: list[Any], look: Look, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.recordings is not set"):
        look(recordings=None)
    with pytest.raises(ConfigError, match="is where snapshots are kept"):
        look(recordings=str(tmp_path / "data/recorded"))


def test_artifacts_elsewhere_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    tree = compose.compose([f"artifacts={tmp_path / 'artifacts'}", "retrain.recordings=x"])
    with pytest.raises(ConfigError, match="cannot be set for the whole graph"):
        retrain.run(tree, load(tree))
    assert not (tmp_path / "artifacts").exists()
