"""The dataset's files: one Parquet file for each split, with the same bytes for the same rows.

Knows nothing of tokenizers, or of where rows come from.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.finetune import RowKind
from pipeline.core.errors import DataError
from pipeline.models.chat.messages import Message

_AGAIN = "run `python -m pipeline stage=prepare` again"
ROW_GROUP = 10_000
SPLITS = ("train", "validation", "test")
_SCHEMA = pa.schema(
    [
        pa.field("messages", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("loss_mask", pa.list_(pa.int8()), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
_TEST_SCHEMA = pa.schema(
    [
        *_SCHEMA,
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
    ]
)
# Of training rows that hold more than one good answer: names of the columns beside the others.
_MORE: dict[RowKind, tuple[pa.Field, ...]] = {
    "answers": (),
    "pairs": (
        pa.field("rejected", pa.string(), nullable=False),
        pa.field("rejected_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("rejected_mask", pa.list_(pa.int8()), nullable=False),
    ),
    "labels": (pa.field("label", pa.int8(), nullable=False),),
}
_JSON = ("messages", "rejected")
_CODES = {pa.int32(): "i", pa.int8(): "b"}


@dataclass(frozen=True)
class Row:
    """One conversation.

    messages: its turns (a JSON string in the file, which also holds tools, tags and language, if
        there are any).
    input_ids: token ids of the whole conversation.
    loss_mask: 1 for each token to train on; as long as input_ids.
    source: the "file:line" that it was read from.
    prompt_ids, answer: in the test split, the ids of all before the last assistant turn, ending in
        the generation prompt, and the text of that turn; elsewhere None.
    rejected, rejected_ids, rejected_mask: of a pair, the conversation with the worse answer, as
        messages, input_ids and loss_mask have the one with the better answer; elsewhere None.
    label: 1 if the answer is a good one and 0 if it is a bad one, where an objective learns from
        that; elsewhere None.
    tools: those that the assistant may call, in OpenAI's form.
    tags, language: of a test question, as its row names them.
    """

    messages: list[Message]
    input_ids: list[int]
    loss_mask: list[int]
    source: str
    prompt_ids: list[int] | None = None
    answer: str | None = None
    rejected: list[Message] | None = None
    rejected_ids: list[int] | None = None
    rejected_mask: list[int] | None = None
    label: int | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    language: str | None = None

    @property
    def kind(self) -> RowKind:
        """What the row teaches."""
        if self.rejected_ids is not None:
            return "pairs"
        return "answers" if self.label is None else "labels"

    @property
    def sides(self) -> list[tuple[list[int], list[int]]]:
        """Token ids and loss mask of each conversation: one, or the better and the worse."""
        sides = [(self.input_ids, self.loss_mask)]
        if self.rejected_ids is not None and self.rejected_mask is not None:
            sides.append((self.rejected_ids, self.rejected_mask))
        return sides


def write_split(folder: Path, name: str, rows: Iterable[Row], kind: RowKind = "answers") -> Path:
    """Write one of SPLITS, and return the path of its file.

    kind: of the rows, except those of the test split, which need prompt_ids and answer.
    """
    schema = _schema(name, kind)
    file = folder / f"{name}.parquet"
    remaining = iter(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(remaining, ROW_GROUP)):
            columns = [_column(field, group) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return file


def read_split(folder: Path, name: str) -> list[Row]:
    """Rows of one of SPLITS, in the order in which they were written.

    Raises:
        DataError: the file is missing or of another kind, or a row's ids and mask differ in length.
    """
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise DataError(f"{file} is missing: {_AGAIN}")
    try:
        # pq.read_table would also import pandas.
        with pq.ParquetFile(file) as parquet:
            table = parquet.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file ({error}): {_AGAIN}") from error
    if not any(table.schema.equals(_schema(name, kind)) for kind in _MORE):
        found = ", ".join(table.schema.names)
        raise DataError(f"{file} has the columns {found}, not those of a dataset: {_AGAIN}")
    rows = [_row(record, file) for record in table.to_pylist()]
    for i, row in enumerate(rows):
        for ids, mask in row.sides:
            if len(ids) != len(mask):
                raise DataError(
                    f"{file} row {i} has {len(ids)} ids and a mask of {len(mask)}: {_AGAIN}"
                )
    return rows


def read_messages(
    folder: Path, name: str
) -> Iterator[tuple[list[Message], list[Message] | None, str]]:
    """Messages, those with the worse answer if there are any, and source of each row of a split,
    without its tokens, and a part of the file at a time.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise DataError(f"{file} is missing: {_AGAIN}")
    try:
        with pq.ParquetFile(file) as parquet:
            names = [n for n in (*_JSON, "source") if n in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(columns=names):
                for record in batch.to_pylist():
                    said = json.loads(record["messages"])
                    messages = said["messages"] if isinstance(said, dict) else said
                    worse = json.loads(record["rejected"]) if "rejected" in record else None
                    yield messages, worse, record["source"]
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise DataError(f"{file} is not a Parquet file of rows ({error}): {_AGAIN}") from error


def _schema(name: str, kind: RowKind) -> pa.Schema:
    if name == "test":
        return _TEST_SCHEMA
    return pa.schema([*_SCHEMA, *_MORE[kind]])


def _column(field: pa.Field, rows: Sequence[Row]) -> pa.Array:
    """One field of the rows, built from buffers: pa.array imports pandas, which takes seconds."""
    values = [getattr(row, field.name) for row in rows]
    if field.name == "messages":
        values = [_with_more(row) for row in rows]
    if field.name in _JSON:
        values = [json.dumps(value, ensure_ascii=False) for value in values]
    if pa.types.is_string(field.type):
        values = [value.encode() for value in values]
    if pa.types.is_int8(field.type):
        packed = pa.py_buffer(array("b", values))
        return pa.Array.from_buffers(field.type, len(values), [None, packed])
    ends = pa.py_buffer(array("i", accumulate(map(len, values), initial=0)))
    if pa.types.is_string(field.type):
        return pa.StringArray.from_buffers(len(values), ends, pa.py_buffer(b"".join(values)))
    item = field.type.value_type
    flat = pa.py_buffer(array(_CODES[item], chain.from_iterable(values)))
    items = pa.Array.from_buffers(item, len(flat) // item.byte_width, [None, flat])
    return pa.Array.from_buffers(field.type, len(values), [None, ends], children=[items])


def _with_more(row: Row) -> Any:
    """The messages, beside what few rows have: tools, tags, a language."""
    more = {n: value for n in ("tools", "tags", "language") if (value := getattr(row, n))}
    return {"messages": row.messages, **more} if more else row.messages


def _row(record: Mapping[str, Any], file: Path) -> Row:
    try:
        parsed = {name: json.loads(record[name]) for name in _JSON if name in record}
        if isinstance(parsed["messages"], dict):
            parsed |= parsed["messages"]
        return Row(**{**record, **parsed})
    except ValueError as error:
        raise DataError(f"{file} holds messages that are not JSON ({error}): {_AGAIN}") from error
