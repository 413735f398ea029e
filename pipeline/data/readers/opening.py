"""Opens a data file, decompressed if its name ends in .gz or .zst, and explains what is wrong."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.core.errors import DataError, PipelineError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass
class Opened:
    """The bytes of a file. stream: decompressed. raw: as they are on the disk."""

    stream: BinaryIO
    raw: BinaryIO
    compressed: bool


def compression_of(file: Path) -> str | None:
    """The compression that a file's name tells, or None."""
    return COMPRESSIONS.get(file.suffix.lower())


@contextmanager
def opened(file: Path) -> Iterator[Opened]:
    """A file to read.

    Raises:
        DataError: it cannot be read, or is compressed and damaged.
    """
    how = compression_of(file)
    try:
        with file.open("rb") as raw:
            if how == "gzip":
                stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
            elif how == "zstd":
                import pyarrow as pa

                # Its type lacks what io asks for; the object has it.
                stream = io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))  # type: ignore[type-var]
            else:
                stream = raw
            yield Opened(stream, raw, how is not None)
    except PipelineError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(explain(file, error, how)) from error


def explain(file: Path, error: Exception, compression: str | None = None) -> str:
    """What is wrong with a file, where the system or a decompressor failed, in a line."""
    if compression and not (isinstance(error, OSError) and error.errno):
        why = str(error).lower()
        if isinstance(error, EOFError) or "truncated" in why:
            return f"{file} is truncated: its {compression} stream has no end: copy it again"
        program = {"gzip": "gzip -t", "zstd": "zstd -t"}[compression]
        return f"{file} is not whole {compression} data ({error}): check it with `{program} {file}`"
    reason = getattr(error, "strerror", None) or str(error)
    return f"{file} cannot be read ({reason}): correct the file or the data.* setting"


def explain_encoding(file: str, head: bytes) -> str | None:
    """What to do about a text that begins so, if it is in UTF-16 or UTF-32; else None.

    Most letters of a text without a byte order mark have one zero byte, which no text in UTF-8 has.
    """
    unmarked = {1: "UTF-16LE", 0: "UTF-16BE"}
    zeros = {place: head[place:200:2].count(0) for place in unmarked}
    place = max(zeros, key=lambda place: zeros[place])
    even = () if zeros[place] < max(2, len(head[place:200:2]) // 2) else (b"", unmarked[place])
    for mark, name in (
        (b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), *((even,) if even else ()),
    ):  # fmt: skip
        if head.startswith(mark):
            return (
                f"the file is in {name}: save it as UTF-8: `iconv -f {name} -t UTF-8 {file} > NEW`"
            )
    return None
