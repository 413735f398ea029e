"""CSV and TSV: the first line names the columns, each further record is a row.

In CSV files the delimiter is a comma, a semicolon, a tab or a bar: the one that the first line has
most of. A cell may hold line breaks and delimiters if it is in quotes.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import DataError, short
from pipeline.data.readers import record
from pipeline.data.readers.opening import explain_encoding, opened
from pipeline.data.readers.record import Advance, Piece, Reader, Record, Row
from pipeline.data.row_formats import shown
from pipeline.data.rows import Rejected, excerpt

_DELIMITERS = ",;\t|"
CELLS = "wrong number of cells"


def delimiter_of(header: str) -> str:
    """The delimiter of a CSV file, by its first line; a comma if there is none."""
    outside = "".join(header.split('"')[::2])
    return max(_DELIMITERS, key=outside.count)


def _read(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    with opened(file) as source:
        head = source.stream.readline(record.MAX_ROW_BYTES)
        if what := explain_encoding(str(file), head):
            raise DataError(f"{file}: {what}")
        at = source.raw.tell() if source.compressed else len(head)
        advance(at)

        def lines() -> Iterator[str]:
            nonlocal at
            yield head.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
            while raw := source.stream.readline(record.MAX_ROW_BYTES):
                now = source.raw.tell() if source.compressed else at + len(raw)
                advance(now - at)
                at = now
                # A byte that is not UTF-8 spoils its record alone.
                yield raw.decode(errors="surrogateescape")

        tabs = ".tsv" in (s.lower() for s in file.suffixes)
        first = head.decode(errors="replace")
        yield from _rows(file, name, lines(), "\t" if tabs else delimiter_of(first))


def _rows(file: Path, name: str, lines: Iterator[str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(record.MAX_ROW_BYTES)
    # Not strict: a quote within a cell without quotes is a quote.
    reader = csv.reader(lines, delimiter=delimiter)
    columns = _header(file, reader)
    if columns is None:
        return
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}:{begin}: {error}: a cell that begins with a quote must end with one; "
                "correct the line, or write the file again as UTF-8 CSV or as JSON lines"
            ) from error
        if not any(cells):
            continue
        text = delimiter.join(cells)
        if not _is_text(text):
            shown_text = text.encode(errors="surrogateescape").decode(errors="replace")
            yield Rejected(
                name, begin, "bad UTF-8",
                f"a byte of the record is not UTF-8; if the file is in Latin-1: "
                f"`iconv -f LATIN1 -t UTF-8 {file.name} > NEW`",
                excerpt(shown_text),
            )  # fmt: skip
        elif len(cells) != len(columns):
            yield Rejected(
                name, begin, CELLS,
                f"it has {len(cells)}, and the first line names {len(columns)}: put cells that "
                f"hold {_shown(delimiter)} into quotes",
                excerpt(text),
            )  # fmt: skip
        else:
            yield Record(begin, dict(zip(columns, cells, strict=True)), text)


def _header(file: Path, reader: "Iterator[list[str]]") -> list[str] | None:
    """The names of the columns; None of an empty file."""
    try:
        columns = [name.strip() for name in next(reader)]
    except StopIteration:
        return None
    except csv.Error as error:
        if "new-line" in str(error):
            raise DataError(
                f"{file}: its lines end with carriage returns alone: `sed 's/\\r/\\n/g' {file} > "
                "NEW`"
            ) from error
        raise DataError(f"{file}:1: {error}: correct the line with the columns' names") from error
    twice = next((name for name in columns if columns.count(name) > 1), None)
    named = ", ".join(shown(column) or "(no name)" for column in columns)
    if twice is not None:
        what = f"the column {shown(twice)} twice" if twice else "columns without a name"
        raise DataError(f"{file}:1 has {what} ({short(named, 120)}): give each a name of its own")
    columns = [name or f"Unnamed: {i}" for i, name in enumerate(columns)]  # as pandas has it
    if not all(_is_text(column) for column in columns):
        raise DataError(
            f"{file}:1 is not UTF-8: `iconv -f LATIN1 -t UTF-8 {file} > NEW` if it is in Latin-1"
        )
    return columns


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else repr(delimiter)


DELIMITED = Reader("csv", "CSV and TSV", (".csv", ".tsv"), _read)
