"""The dataset's files: one Parquet file for each split, with the same bytes for the same rows.

Knows nothing of tokenizers, or of where rows come from.
"""

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
_CODES = {pa.int32(): "i", pa.int8(): "b"}


@dataclass(frozen=True)
class Row:
    """One conversation.

    messages: its turns (a JSON string in the file).
    input_ids: token ids of the whole conversation.
    loss_mask: 1 for each token to train on; as long as input_ids.
    source: the "file:line" that it was read from.
    prompt_ids, answer: in the test split, the ids of all before the last assistant turn, ending in
        the generation prompt, and the text of that turn; elsewhere None.
    """

    messages: list[Message]
    input_ids: list[int]
    loss_mask: list[int]
    source: str
    prompt_ids: list[int] | None = None
    answer: str | None = None


def write_split(folder: Path, name: str, rows: Iterable[Row]) -> Path:
    """Write one of SPLITS, and return the path of its file.

    Rows of the test split need prompt_ids and answer.
    """
    schema = _TEST_SCHEMA if name == "test" else _SCHEMA
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
    schema = _TEST_SCHEMA if name == "test" else _SCHEMA
    try:
        # pq.read_table would also import pandas.
        with pq.ParquetFile(file) as parquet:
            table = parquet.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file ({error}): {_AGAIN}") from error
    if not table.schema.equals(schema):
        found = ", ".join(table.schema.names)
        raise DataError(f"{file} has the columns {found}, not those of a dataset: {_AGAIN}")
    rows = [_row(record, file) for record in table.to_pylist()]
    for i, row in enumerate(rows):
        if len(row.input_ids) != len(row.loss_mask):
            raise DataError(
                f"{file} row {i} has {len(row.input_ids)} ids and a mask of {len(row.loss_mask)}: "
                + _AGAIN
            )
    return rows


def _column(field: pa.Field, rows: Sequence[Row]) -> pa.Array:
    """One field of the rows, built from buffers: pa.array imports pandas, which takes seconds."""
    values = [getattr(row, field.name) for row in rows]
    if field.name == "messages":
        values = [json.dumps(value, ensure_ascii=False) for value in values]
    if pa.types.is_string(field.type):
        values = [value.encode() for value in values]
    ends = pa.py_buffer(array("i", accumulate(map(len, values), initial=0)))
    if pa.types.is_string(field.type):
        return pa.StringArray.from_buffers(len(values), ends, pa.py_buffer(b"".join(values)))
    item = field.type.value_type
    flat = pa.py_buffer(array(_CODES[item], chain.from_iterable(values)))
    items = pa.Array.from_buffers(item, len(flat) // item.byte_width, [None, flat])
    return pa.Array.from_buffers(field.type, len(values), [None, ends], children=[items])


def _row(record: Mapping[str, Any], file: Path) -> Row:
    try:
        return Row(**{**record, "messages": json.loads(record["messages"])})
    except ValueError as error:
        raise DataError(f"{file} holds messages that are not JSON ({error}): {_AGAIN}") from error
