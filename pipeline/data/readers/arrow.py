"""Arrow files and streams, and the folders that `datasets` saves (`save_to_disk`)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import DataError
from pipeline.data.readers.opening import explain
from pipeline.data.readers.record import Advance, Piece, Reader, Row
from pipeline.data.readers.tables import batch_rows, check_columns, records

if TYPE_CHECKING:
    import pyarrow as pa

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved one split into this folder."""
    return folder.is_dir() and (folder / _STATE).is_file()


def splits_of(folder: Path) -> list[str]:
    """The splits that `datasets` saved into this folder, each in a folder of its own."""
    try:
        return [str(name) for name in json.loads((folder / _SPLITS).read_bytes())["splits"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def data_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in their order.

    Raises:
        DataError: its list of files is damaged, or one of them is missing.
    """
    again = "save it again with save_to_disk(), or copy it again"
    try:
        named = [
            one["filename"] for one in json.loads((folder / _STATE).read_bytes())["_data_files"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _STATE} lists no data files ({error}): {again}") from error
    files = [folder / Path(str(name)).name for name in named]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} is missing, which {_STATE} beside it names: {again}")
    return files


@contextmanager
def _batches(file: Path) -> "Iterator[Iterator[pa.RecordBatch]]":
    """The batches of a file or a stream, which stay on the disk until they are used."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as mapped:
            if mapped.read(6) == b"ARROW1":
                mapped.seek(0)
                with pa.ipc.open_file(mapped) as found:
                    yield (found.get_batch(i) for i in range(found.num_record_batches))
            else:
                mapped.seek(0)
                with pa.ipc.open_stream(mapped) as stream:
                    yield iter(stream)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise DataError(explain(file, error)) from error
        text = " ".join(str(error).split())[:120]
        size = file.stat().st_size
        raise DataError(
            f"{file} is empty: remove it, or write it again"
            if not size
            else f"{file} is truncated, or is not an Arrow file ({text}): write it again"
        ) from error


def _read(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    number = 1
    files = data_files(file) if file.is_dir() else [file]
    for part in files[piece.begin : piece.end]:
        number = piece.first if part == files[piece.begin] else number
        done = 0
        with _batches(part) as batches:
            for batch in batches:
                check_columns(batch.schema.names, part)
                # Arrow trusts the offsets in a file: reading with wrong ones ends the process.
                batch.validate(full=True)
                at_once = batch_rows(batch.nbytes // max(1, batch.num_rows))
                for begin in range(0, batch.num_rows, at_once):
                    some = batch.slice(begin, at_once)
                    yield from records(some, name, number)
                    number += some.num_rows
                # At most the file's size: its batches may be compressed.
                read = min(batch.nbytes, part.stat().st_size - done)
                done += read
                advance(read)
        advance(part.stat().st_size - done)


def _pieces(file: Path, size: int) -> Sequence[Piece]:
    """A piece for each file of a saved dataset."""
    if not file.is_dir():
        return [Piece()]
    pieces, first = [], 1
    for i, part in enumerate(data_files(file)):
        pieces.append(Piece(i, i + 1, first))
        with _batches(part) as batches:
            first += sum(batch.num_rows for batch in batches)
    return pieces or [Piece()]


ARROW = Reader("arrow", "Arrow", (".arrow", ".feather"), _read, _pieces, compressed=False)
