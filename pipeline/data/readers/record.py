"""What a reader is, and what it gives: the rows of a file, as far as the kind of file decides.

A reader knows how a file is built. What the fields of a row mean is the same in every kind of file
(row_formats.py), and is decided after it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.rows import Rejected

MAX_ROW_BYTES = 16 * 2**20  # of a line of JSON, an element of an array or a row of a table
PIECE_BYTES = 32 * 2**20  # about so many bytes of a file are a piece

Advance = Callable[[int], None]  # called with the number of bytes that were just read


@dataclass(frozen=True)
class Piece:
    """A part of a file that can be read without the others.

    begin, end: in the reader's own unit: bytes of lines, row groups of Parquet, batches of Arrow;
        an end of None is the end of the file. first: the number of its first line or row.
    """

    begin: int = 0
    end: int | None = None
    first: int = 1


WHOLE = Piece()


@dataclass(frozen=True)
class Record:
    """A row as it is in a file.

    line: its line, or in a table its row, counted from 1. value: what JSON would give for it.
    text: as it is written, where it is written as text.
    """

    line: int
    value: object
    text: str | None = None


@dataclass(frozen=True)
class Section:
    """A question of a text with its answer, where the text itself says which is which."""

    line: int
    question: str
    answer: str


Row = Record | Section | Rejected


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    name: as settings and reports have it. title: as documentation has it. suffixes: of its files.
    read: yields the rows of a piece of a file; `name` is how the rows name the file. Raises
        DataError for a file that cannot be used as a whole.
    pieces: cuts a file into pieces of about so many bytes; None: it is read as a whole.
    compressed: whether a file of this kind may be compressed as a whole, with .gz or .zst behind
        its suffix.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, str, Piece, Advance], Iterator[Row]]
    pieces: Callable[[Path, int], Sequence[Piece]] | None = None
    compressed: bool = True


def ignore(_: int) -> None:
    """Advance, for callers that show no progress."""
