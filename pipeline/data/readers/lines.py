"""The lines of a text file, each with what is wrong with it."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.readers import record
from pipeline.data.readers.opening import Opened, explain_encoding, opened
from pipeline.data.readers.record import Advance, Piece
from pipeline.data.rows import EXCERPT, Line

_BOM = b"\xef\xbb\xbf"


def read_lines(file: Path, piece: Piece, advance: Advance) -> Iterator[Line]:
    """The lines of a piece of a file, whose begin and end are bytes."""
    with opened(file) as source:
        if piece.begin:
            source.stream.seek(piece.begin)
        yield from _lines(file, source, piece, advance)


def _lines(file: Path, source: Opened, piece: Piece, advance: Advance) -> Iterator[Line]:
    most = record.MAX_ROW_BYTES
    number, at, reported = piece.first - 1, piece.begin, source.raw.tell()
    while piece.end is None or at < piece.end:
        if not (raw := source.stream.readline(most)):
            break
        number += 1
        at += len(raw)
        too_long = len(raw) == most and not raw.endswith(b"\n")
        more = raw
        while too_long and more and not more.endswith(b"\n"):
            more = source.stream.readline(most)
            at += len(more)
        if source.compressed:
            advance(source.raw.tell() - reported)
            reported = source.raw.tell()
        else:
            advance(at - reported)
            reported = at
        if too_long:
            head = raw[: 4 * EXCERPT].decode(errors="replace")
            yield Line(number, head, "line too long", f"over {most // 2**20} MiB")
            continue
        yield decoded(file, number, raw.removeprefix(_BOM) if number == 1 else raw)


def decoded(file: Path, number: int, raw: bytes) -> Line:
    """A line as text."""
    try:
        text = raw.decode()
        if number == 1 and "\0" in text and (whole := explain_encoding(file.name, raw)):
            return Line(number, text, "bad UTF-8", whole)
        return Line(number, text, None)
    except UnicodeDecodeError as error:
        detail = f"byte {error.start + 1} of the line: {error.reason}"
        if number == 1 and (whole := explain_encoding(file.name, raw)):
            detail = whole
        elif error.reason != "unexpected end of data":
            detail += f"; if the file is in Latin-1: `iconv -f LATIN1 -t UTF-8 {file.name} > NEW`"
        return Line(number, raw.decode(errors="replace"), "bad UTF-8", detail)


def line_pieces(file: Path, size: int) -> list[Piece]:
    """Pieces of about so many bytes, cut behind a line, with the number of the first line of each.

    The lines are counted, which takes about a second for a gigabyte.
    """
    pieces, begin, first = [], 0, 1
    with opened(file) as source:
        if source.compressed:
            return [Piece()]
        at, lines = 0, 0
        while block := source.stream.read(min(2**20, max(1, size))):
            at += len(block)
            lines += block.count(b"\n")
            if at - begin >= size:
                rest = source.stream.readline()
                at += len(rest)
                lines += rest.count(b"\n")
                pieces.append(Piece(begin, at, first))
                begin, first = at, 1 + lines
    if at > begin or not pieces:
        pieces.append(Piece(begin, at, first))
    return pieces
