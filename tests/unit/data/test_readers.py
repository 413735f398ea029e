"""Rows from files: every kind is read, and no bytes end the reading."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError, DataError
from pipeline.data import rows
from pipeline.data.finding import find_files
from pipeline.data.readers import record
from pipeline.data.reading import read_file
from pipeline.data.rows import Conversation, Rejected

USER, ASSISTANT = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}


def read(file: Path, content: bytes | str) -> list[Conversation | Rejected]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_file(file, file.name))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT], "intent": "greet"},
        {"prompt": "Hi.", "completion": " Hello!\n"},
        {"input": "Hi. ", "output": "Hello!"},
    ],
)
def test_three_kinds_of_json_lines(tmp_path: Path, row: dict[str, object]) -> None:
    (found,) = read(tmp_path / "a.jsonl", json.dumps(row))
    assert isinstance(found, Conversation)
    assert found.messages == [USER, ASSISTANT]
    assert found.place == "a.jsonl:1"


def test_kinds_may_be_mixed_and_lines_be_blank(tmp_path: Path) -> None:
    lines = ['\ufeff{"prompt": "a", "completion": "b"}\r', "", '{"input": "c", "output": "d"}', " "]
    found = read(tmp_path / "a.jsonl", "\n".join(lines))
    assert [(row.line, type(row)) for row in found] == [(1, Conversation), (3, Conversation)]


def test_fields_for_tools_may_be_empty(tmp_path: Path) -> None:
    turns = [{**USER, "tool_calls": None}, {**ASSISTANT, "tool_calls": [], "function_call": None}]
    (found,) = read(tmp_path / "a.jsonl", json.dumps({"messages": turns, "tools": []}).encode())
    assert isinstance(found, Conversation)


def test_pair_with_a_system_turn(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "a.jsonl", '{"system": "S", "prompt": "a", "completion": "b"}')
    assert isinstance(found, Conversation)
    assert [m["role"] for m in found.messages] == ["system", "user", "assistant"]


def test_turns_of_weight_0_are_marked(tmp_path: Path) -> None:
    row = {"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]}
    (found,) = read(tmp_path / "a.jsonl", json.dumps(row))
    assert isinstance(found, Conversation)
    assert found.messages[1] == {**ASSISTANT, "weight": 0}
    assert found.messages[3] == ASSISTANT


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "bad JSON"),
        (b"[1, 2]", "bad JSON"),
        (b"1" * 5000, "bad JSON"),
        (b"[" * 200_000, "bad JSON"),
        (b'{"prompt": "caf\xe9", "completion": "b"}', "bad UTF-8"),
        (b'{"prompt": "\\ud800", "completion": "b"}', "bad Unicode"),
        (b'{"prompt": "a"}', "empty assistant turn"),
        (b'{"prompt": "", "completion": "b"}', "empty user turn"),
        (b'{"prompt": 3, "completion": "b"}', "not text"),
        (b'{"query": "a", "reply": "b"}', "unknown format"),
        (b'{"messages": [{"role": "user", "content": "a", "weight": 2}]}', "unused field"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": '
            b'"let me", "tool_calls": [{"id": "1"}]}]}',
            "bad tool call",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": '
            b'"b"}], "tools": [{"type": "function"}]}',
            "bad tool",
        ),
        (b'{"prompt": "a", "completion": "b", "functions": [{"title": "f"}]}', "bad tool"),
    ],
)
def test_bad_lines_are_rejected_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"prompt": "a", "completion": "b"}\n'
    first, bad, last = read(tmp_path / "a.jsonl", good + line + b"\n" + good)
    assert isinstance(first, Conversation)
    assert isinstance(last, Conversation)
    assert isinstance(bad, Rejected)
    assert (bad.file, bad.line, bad.reason) == ("a.jsonl", 2, reason)
    assert 0 < len(bad.excerpt) <= rows.EXCERPT


def test_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_ROW_BYTES", 100)
    good = '{"prompt": "a", "completion": "b"}\n'
    found = read(tmp_path / "a.jsonl", good + "x" * 1000 + "\n" + good)
    assert [getattr(row, "reason", "kept") for row in found] == ["kept", "line too long", "kept"]
    assert [row.line for row in found] == [1, 2, 3]


def test_plain_text(tmp_path: Path) -> None:
    text = (
        "Harbor Bank: Loans\n\n## How do I apply?\nFill in the form\nonline.\n\nOr call us.\n\n"
        "## What is the rate?\n8.9 percent.\n"
    )
    first, second = read(tmp_path / "loans.txt", text)
    assert isinstance(first, Conversation)
    assert isinstance(second, Conversation)
    assert first.messages == [
        {"role": "user", "content": "How do I apply?"},
        {"role": "assistant", "content": "Fill in the form online.\n\nOr call us."},
    ]
    assert (first.line, second.line) == (3, 9)
    assert second.messages[1]["content"] == "8.9 percent."


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"Title\n\nNo heading above.\nStill none.\n", 3, "text outside a section"),
        (b"Title\n## Question\n\n", 2, "empty assistant turn"),
        (b"Title\n## \nAnswer.\n", 2, "empty user turn"),
        (b"Title\n## Question\nFirst.\nAnsw\xe9r.\n", 4, "bad UTF-8"),
        (b"Titl\xe9\n", 1, "bad UTF-8"),
    ],
)
def test_bad_sections_are_rejected_alone(
    tmp_path: Path, text: bytes, line: int, reason: str
) -> None:
    bad, good = read(tmp_path / "a.txt", text + b"## Q\nA\n")
    assert isinstance(bad, Rejected)
    assert (bad.line, bad.reason) == (line, reason)
    assert isinstance(good, Conversation)


row_like = st.dictionaries(
    st.sampled_from(["messages", "prompt", "completion", "input", "output", "system", "role"]),
    st.none() | st.integers() | st.text() | st.lists(st.dictionaries(st.just("role"), st.text())),
)
lines = st.binary() | st.text().map(str.encode) | row_like.map(lambda row: json.dumps(row).encode())


@settings(deadline=None)
@given(st.lists(lines), st.sampled_from([".jsonl", ".ndjson", ".txt", ".md"]))
@example([b"## \xff", b"\x00", b"##"], ".txt")
def test_no_bytes_end_the_reading(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], suffix: str
) -> None:
    content = b"\n".join(parts)
    found = read(tmp_path_factory.mktemp("data") / f"a{suffix}", content)
    assert all(1 <= row.line <= content.count(b"\n") + 1 for row in found)
    assert len({row.line for row in found}) == len(found)
    if suffix in (".jsonl", ".ndjson"):
        text = content.removeprefix("\ufeff".encode()).decode(errors="replace")
        assert len(found) == sum(bool(line.strip()) for line in text.split("\n"))
    for row in found:
        json.dumps(row.messages if isinstance(row, Conversation) else row.detail).encode()


def test_every_byte_is_reported_as_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"x\n" * 100 + b"y")
    counts: list[int] = []
    list(read_file(file, "a", advance=counts.append))
    assert sum(counts) == 201


def test_globs_find_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_files(tmp_path, ("b.jsonl", "**/*.jsonl"), "data.train")
    assert [file.relative_to(tmp_path).as_posix() for file in found] == [
        "b.jsonl",
        "a.jsonl",
        "sub/c.jsonl",
    ]


def test_a_name_with_brackets_is_that_file(tmp_path: Path) -> None:
    for name in ("test [1].jsonl", "test 1.jsonl"):
        (tmp_path / name).touch()
    found = find_files(tmp_path, ("test [1].jsonl",), "data.test")
    assert [file.name for file in found] == ["test [1].jsonl"]
    assert len(find_files(tmp_path, ("test*.jsonl",), "data.test")) == 2


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("nothing*.jsonl", DataError, "data.train: no file in"),
        ("*.odp", DataError, "unknown kind"),
        ("/etc/*", ConfigError, "must be a name or glob below"),
        ("", ConfigError, "must be a name or glob below"),
        ("x" * 300 + ".jsonl", ConfigError, "File name too long"),
    ],
)
def test_globs_that_find_nothing_usable(
    tmp_path: Path, pattern: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "table.odp").touch()
    with pytest.raises(error, match=message):
        find_files(tmp_path, (pattern,), "data.train")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_file(tmp_path / "missing.jsonl", "missing.jsonl"))


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "the field prompt is there twice"),
        (b'{"prompt": "a", "completion": "b", "system": NaN}', "NaN is not JSON"),
        ('{"prompt": "a"}'.encode("utf-16"), "the file is in UTF-16"),
    ],
)
def test_what_json_readers_lose_is_refused(tmp_path: Path, line: bytes, detail: str) -> None:
    (bad,) = read(tmp_path / "a.jsonl", line)
    assert isinstance(bad, Rejected)
    assert detail in bad.detail
