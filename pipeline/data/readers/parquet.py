"""Parquet: a row of the file is a row of the data, its columns are the fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import DataError
from pipeline.data.readers.opening import explain
from pipeline.data.readers.record import WHOLE, Advance, Piece, Reader, Row
from pipeline.data.readers.tables import batch_rows, check_columns, records

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def _open(file: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_explain(file, error)) from error


def _explain(file: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return explain(file, error)
    text = " ".join(str(error).split())[:120]
    try:
        with file.open("rb") as stream:
            head = stream.read(4)
    except OSError:
        head = b""
    if head == b"PAR1":
        return f"{file} is truncated or damaged ({text}): copy it again, or write it again"
    if not head:
        return f"{file} is empty: remove it, or write it again"
    return f"{file} is not a Parquet file ({text}): give it the suffix of what it is"


def _read(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    import pyarrow as pa

    with _open(file) as parquet:
        check_columns(parquet.schema_arrow.names, file)
        end = parquet.num_row_groups if piece.end is None else piece.end
        number = piece.first
        for group in range(piece.begin, end):
            found = parquet.metadata.row_group(group)
            size, rows = _size(parquet, group), max(1, found.num_rows)
            at_once = batch_rows(found.total_byte_size // rows)
            try:
                for batch in parquet.iter_batches(at_once, row_groups=[group]):
                    yield from records(batch, name, number)
                    number += batch.num_rows
                    advance(size * batch.num_rows // rows)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{name}:{number}: {_explain(file, error)}") from error


def _size(parquet: "pq.ParquetFile", group: int) -> int:
    """Bytes of a row group in the file."""
    found = parquet.metadata.row_group(group)
    return sum(found.column(i).total_compressed_size for i in range(found.num_columns))


def _pieces(file: Path, size: int) -> list[Piece]:
    """Row groups together, up to about so many bytes."""
    pieces = []
    with _open(file) as parquet:
        begin, bytes_, rows, first = 0, 0, 1, 1
        for group in range(parquet.num_row_groups):
            bytes_ += _size(parquet, group)
            rows += parquet.metadata.row_group(group).num_rows
            if bytes_ >= size or group == parquet.num_row_groups - 1:
                pieces.append(Piece(begin, group + 1, first))
                begin, bytes_, first = group + 1, 0, rows
    return pieces or [WHOLE]


PARQUET = Reader("parquet", "Parquet", (".parquet", ".pq"), _read, _pieces, compressed=False)
