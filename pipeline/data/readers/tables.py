"""Rows of tables that Arrow reads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.data.readers import record
from pipeline.data.readers.record import Record, Row
from pipeline.data.rows import Rejected

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_ROWS = 1_000  # that are in memory at once as Python's objects
_MOST_BYTES = 64 * 2**20


def batch_rows(mean: int) -> int:
    """How many rows to read at once, by their mean size in bytes."""
    return max(1, min(_MOST_ROWS, _MOST_BYTES // max(1, mean)))


def records(batch: "pa.RecordBatch", name: str, first: int) -> Iterator[Row]:
    """The rows of a batch. first: the number of its first row in the file."""
    most = record.MAX_ROW_BYTES
    if batch.nbytes <= most:
        for number, value in enumerate(batch.to_pylist(), first):
            yield Record(number, value)
        return
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        if row.nbytes > most:
            yield Rejected(name, first + number, "line too long", f"over {most // 2**20} MiB", "")
        else:
            yield Record(first + number, row.to_pylist()[0])
