"""Rows of tables that Arrow reads."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import DataError
from pipeline.data.readers import record
from pipeline.data.readers.record import Record, Row
from pipeline.data.row_formats import shown
from pipeline.data.rows import Rejected

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_ROWS = 1_000  # that are in memory at once as Python's objects
_MOST_BYTES = 64 * 2**20


def check_columns(names: Sequence[str], file: Path) -> None:
    """
    Raises:
        DataError: two columns have one name, of which a row could hold only one.
    """
    if len(set(names)) < len(names):
        twice = shown(next(name for name in names if list(names).count(name) > 1))
        raise DataError(f"{file} has the column {twice} twice: give each a name of its own")


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
