"""JSON lines: one object on each line."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.readers.json_values import parse_json
from pipeline.data.readers.lines import line_pieces, read_lines
from pipeline.data.readers.record import Advance, Piece, Reader, Record, Row
from pipeline.models.chat.messages import Unusable


def _read(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    for line in read_lines(file, piece, advance):
        if line.fault:
            yield line.rejected(name, line.fault, line.detail)
        elif line.text.strip():
            try:
                yield Record(line.number, parse_json(line.text), line.text)
            except Unusable as error:
                yield line.rejected(name, error.reason, error.detail, error.field)


JSON_LINES = Reader("json_lines", "JSON lines", (".jsonl", ".ndjson"), _read, line_pieces)
