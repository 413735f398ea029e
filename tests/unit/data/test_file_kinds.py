"""The same rows in every kind of file, whole and in pieces; damaged files are refused in a line."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import DataError, PipelineError
from pipeline.data.finding import find_files, size_of
from pipeline.data.readers import record
from pipeline.data.reading import pieces, read_file, read_piece
from pipeline.data.rows import Conversation, Rejected

ROWS = [{"prompt": f"Question {i},\nor “not”?", "completion": f'Answer "{i}";'} for i in range(40)]
CHATS = [
    {"conversations": [{"from": "human", "value": r["prompt"]},
                       {"from": "gpt", "value": r["completion"]}], "id": str(i)}
    for i, r in enumerate(ROWS)
]  # fmt: skip


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def as_parquet(file: Path, rows: list[dict[str, Any]], group: int = 7) -> None:
    pq.write_table(table_of(rows), file, row_group_size=group)


def as_stream(file: Path, rows: list[dict[str, Any]]) -> None:
    table = table_of(rows)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def as_dataset(folder: Path, rows: list[dict[str, Any]]) -> None:
    """What datasets.Dataset.save_to_disk writes, in two files."""
    folder.mkdir(parents=True)
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (rows[:25], rows[25:]), strict=True):
        as_stream(folder / name, part)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write_bytes(make: Callable[[list[dict[str, Any]]], bytes]) -> Callable[..., None]:
    return lambda file, rows: file.write_bytes(make(rows))


KINDS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "a.jsonl": write_bytes(as_lines),
    "a.jsonl.gz": write_bytes(lambda rows: gzip.compress(as_lines(rows))),
    "a.ndjson.zst": write_bytes(lambda rows: zstd(as_lines(rows))),
    "a.json": write_bytes(lambda rows: json.dumps(rows, indent=1).encode()),
    "b.json": write_bytes(as_lines),
    "c.json.gz": write_bytes(lambda rows: gzip.compress(json.dumps(rows).encode())),
    "a.csv": write_bytes(as_csv),
    "b.csv": write_bytes(lambda rows: b"\xef\xbb\xbf" + as_csv(rows, ";")),
    "a.tsv": write_bytes(lambda rows: as_csv(rows, "\t")),
    "a.csv.zst": write_bytes(lambda rows: zstd(as_csv(rows))),
    "a.parquet": as_parquet,
    "a.arrow": as_stream,
    "a.feather": lambda file, rows: pyarrow.feather.write_feather(table_of(rows), str(file)),
    "saved": as_dataset,
}


def read(file: Path) -> list[Conversation | Rejected]:
    return list(read_file(file, file.name))


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_in_every_kind_of_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    KINDS[name](file, ROWS)
    assert find_files(tmp_path, (name,), "data.train") == [file]
    counts: list[int] = []
    found = list(read_file(file, name, advance=counts.append))
    assert [row.messages[-1]["content"] for row in found if isinstance(row, Conversation)] == [
        row["completion"] for row in ROWS
    ]
    assert found[3].excerpt
    if not file.is_dir():
        assert sum(counts) <= size_of(file) * 1.01
    numbers = [row.line for row in found]
    assert numbers == sorted(set(numbers))
    in_pieces = [row for p in pieces(file, 200) for row in read_piece(file, name, p)]
    assert in_pieces == found
    if name in ("a.jsonl", "a.parquet", "saved"):
        assert len(pieces(file, 200)) > 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.zst", "a.parquet", "a.arrow", "saved"])
def test_turns_in_lists(name: str, tmp_path: Path) -> None:
    make = {**KINDS, "a.jsonl.zst": write_bytes(lambda rows: zstd(as_lines(rows)))}[name]
    make(tmp_path / name, CHATS)
    found = read(tmp_path / name)
    assert [row.messages[0]["content"] for row in found if isinstance(row, Conversation)] == [
        row["prompt"] for row in ROWS
    ]


@pytest.mark.parametrize("block", [4, 7, 64, 2**20])
def test_an_array_is_read_through_windows_of_any_size(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_BLOCK", "_HEAD"):
        monkeypatch.setattr(f"pipeline.data.readers.json_array.{name}", block)
    rows = [*CHATS[:4], {"prompt": 'a\\"[{', "completion": "]},\\"}, {"prompt": "last"}]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\ufeff\n " + json.dumps(rows)):
        (tmp_path / "a.json").write_text(text)
        found = read(tmp_path / "a.json")
        assert [type(row) for row in found] == [Conversation] * 5 + [Rejected]
        first = 1 + text[:3].count("\n")  # the line that all elements are on
        begins = [i for i, line in enumerate(text.split("\n"), 1) if line.startswith("  {")]
        assert [row.line for row in found] == (begins or list(range(first, first + 6)))


def test_a_bad_element_of_an_array_is_rejected_alone(tmp_path: Path) -> None:
    good = json.dumps(ROWS[0]).encode()
    (tmp_path / "a.json").write_bytes(
        b"[" + good + b',\n{"prompt": nothing},\n"text",\n{"prompt": "\xff"},\n' + good + b"]"
    )
    found = read(tmp_path / "a.json")
    assert [getattr(row, "reason", "kept") for row in found] == [
        "kept", "bad JSON", "bad JSON", "bad UTF-8", "kept",
    ]  # fmt: skip
    assert [row.line for row in found] == [1, 2, 3, 4, 5]


def test_pieces_of_random_lines_hold_each_line_once(tmp_path: Path) -> None:
    file, chance = tmp_path / "a.jsonl", random.Random(3)
    for _ in range(20):
        lines = [b"x" * chance.randrange(9) for _ in range(chance.randrange(30))]
        file.write_bytes(b"\n".join(lines))
        whole = read(file)
        for size in (1, 5, 40):
            assert [r for p in pieces(file, size) for r in read_piece(file, "a.jsonl", p)] == whole


def test_a_huge_row_is_rejected_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_ROW_BYTES", 300)
    rows = [ROWS[0], {"prompt": "x" * 400, "completion": "y"}, ROWS[1]]
    for name in ("a.jsonl", "a.json", "a.parquet", "a.arrow"):
        KINDS[name](tmp_path / name, rows)
        found = read(tmp_path / name)
        assert [getattr(row, "reason", "") for row in found] == ["", "line too long", ""], name
    monkeypatch.setattr("pipeline.data.readers.json_array._BLOCK", 50)
    (tmp_path / "a.json").write_text('[{"prompt": "' + "x" * 2**17)
    with pytest.raises(DataError, match=r"a.json:\d+: the element that begins here is over"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("name", KINDS)
def test_no_damage_raises_anything_but_a_line(name: str, tmp_path: Path) -> None:
    chance = random.Random(name)
    file = tmp_path / name
    KINDS[name](file, ROWS)
    part = file / "data-00000-of-00002.arrow" if file.is_dir() else file
    whole = part.read_bytes()
    for _ in range(40):
        damaged = bytearray(
            whole[: chance.randrange(len(whole))] if chance.random() < 0.5 else whole
        )
        for _ in range(chance.randrange(4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        part.write_bytes(damaged)
        try:
            list(read_file(file, name))
            [list(read_piece(file, name, p)) for p in pieces(file, 100)]
        except PipelineError as error:
            text = str(error)
            assert "\n" not in text
            assert file.name in text
