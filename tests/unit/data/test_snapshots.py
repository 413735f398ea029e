"""Snapshots of what was recorded: every conversation once, whole, and none lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataError, ResourceError
from pipeline.data import snapshots as recordings
from pipeline.data.reading import read_file
from pipeline.data.rows import Conversation


def row(question: str, answer: str = "Yes.", **more: Any) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **more})


def record(folder: Path, name: str, *lines: str, end: str = "\n") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + end)


def test_new_conversations_are_written_once(tmp_path: Path) -> None:
    recorded, snapshots = tmp_path / "recorded", tmp_path / "data" / "recorded"
    record(recorded, "a.jsonl", row("One?", request_id="1"), row("Two?"), row("One?"))
    first = recordings.find_new(recorded, snapshots)
    assert (len(first.new), first.known, first.unusable) == (2, 1, 0)
    file = recordings.write_snapshot(first.new, snapshots)
    assert file.parent == snapshots
    rows = [r for r in read_file(file, "taken") if isinstance(r, Conversation)]
    assert [r.messages[0]["content"] for r in rows] == ["One?", "Two?"]
    record(recorded, "b.jsonl", row("Two?"), row("Two?", "No."))
    again = recordings.find_new(recorded, snapshots)
    assert (again.new, again.known) == ([row("Two?", "No.")], 4)


def test_a_line_that_is_being_written_is_left_for_the_next_time(tmp_path: Path) -> None:
    record(tmp_path, "a.jsonl", row("One?"), row("Two?"), end="")
    assert recordings.find_new(tmp_path, tmp_path / "none").new == [row("One?")]


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "3", '{"messages": 1}', '{"messages": []}', '{"prompt": "a"}', "[" * 9999],
)
def test_what_cannot_be_trained_on_is_counted(line: str, tmp_path: Path) -> None:
    record(tmp_path, "a.jsonl", line, row("One?"))
    found = recordings.find_new(tmp_path, tmp_path / "none")
    assert (len(found.new), found.unusable) == (1, 1)


def test_no_bytes_stop_the_search(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\n" + row("One?").encode() + b"\r\n\x00\n")
    found = recordings.find_new(tmp_path, tmp_path / "none")
    assert (found.new, found.unusable) == ([row("One?")], 2)


def test_a_byte_order_mark_is_not_part_of_a_conversation(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row("One?") + "\n", encoding="utf-8-sig")
    assert recordings.find_new(tmp_path, tmp_path / "none").new == [row("One?")]


@given(st.binary())
def test_random_bytes_do_not_stop_the_search(tmp_path_factory: Any, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "a.jsonl").write_bytes(content + b"\n" + row("One?").encode("utf-16") + b"\n")
    assert recordings.find_new(folder, folder / "none").new == []


@settings(deadline=None)
@given(st.lists(st.lists(st.text("ab", min_size=1, max_size=3), max_size=6), max_size=4))
def test_recordings_and_snapshots_add_up(tmp_path_factory: Any, batches: list[list[str]]) -> None:
    """However recordings arrive, the snapshots hold each different conversation exactly once."""
    folder = tmp_path_factory.mktemp("looks")
    recorded, snapshots = folder / "recorded", folder / "snapshots"
    recorded.mkdir()
    taken = []
    for number, questions in enumerate(batches):
        record(recorded, f"{number}.jsonl", *map(row, questions))
        found = recordings.find_new(recorded, snapshots)
        if found.new:
            taken += found.new
            recordings.write_snapshot(found.new, snapshots)
    assert sorted(taken) == sorted({row(q) for questions in batches for q in questions})
    found = recordings.find_new(recorded, snapshots)
    assert not found.new


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"retrain\.recordings=.*/none is not a folder: name the one"
    ):
        recordings.find_new(tmp_path / "none", tmp_path)


def test_a_full_disk_leaves_no_half_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recordings.os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        recordings.write_snapshot([row("One?")], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".gitignore"}


def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ResourceError, match="cannot be written"):
        recordings.write_snapshot([row("One?")], tmp_path / "data" / "recorded")
