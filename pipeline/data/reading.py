"""Reads data files: rows of any kind of file, as conversations or as rows that are rejected.

    readers/           how a kind of file is built: lines, an array, a table, a document
    row_formats.py     what the fields of a row mean; preference_rows.py: those of preferences

A file can be read in pieces, on several machines: `pieces` cuts it, `read_piece` reads one, and
their rows are those of `read_file`, in the same order and with the same numbers. No content of a
row, whatever its bytes, stops the reading. Knows no tokenizer, and no row but the current one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.data import RowFormat
from pipeline.config.finetune import RowKind
from pipeline.core.errors import DataError
from pipeline.data.preference_rows import NO_PAIR, parse_example
from pipeline.data.readers.opening import explain
from pipeline.data.readers.record import PIECE_BYTES, WHOLE, Advance, Piece, Record, Section, ignore
from pipeline.data.readers.table import reader_of
from pipeline.data.rows import EXCERPT, Conversation, Rejected, excerpt
from pipeline.data.tags import tags_of, thread_of
from pipeline.models.chat.messages import Unusable, parse_messages

SECTION = "section"  # the format of a row of a text


@dataclass(frozen=True)
class Options:
    """What rows mean, beside what they say themselves.

    ignored: fields to leave out, beside metadata. kind: what the objective learns from. is_test:
        whether these are questions with their expected answers. columns: by field, the column that
        is read in its place. format: the field that decides what a row with one answer is.
    """

    ignored: frozenset[str] = frozenset()
    kind: RowKind = "answers"
    is_test: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    format: RowFormat | None = None


def pieces(file: Path, size: int = PIECE_BYTES) -> Sequence[Piece]:
    """Pieces of a file of about so many bytes, in its order; one if its kind is read as a whole.

    Raises:
        DataError: the file cannot be read.
    """
    reader = reader_of(file, "data")
    return reader.pieces(file, size) if reader.pieces else [WHOLE]


def read_file(
    file: Path, name: str, options: Options = Options(), advance: Advance = ignore
) -> Iterator[Conversation | Rejected]:
    """Every row of a file. The arguments are those of `read_piece`."""
    return read_piece(file, name, WHOLE, options, advance)


def read_piece(
    file: Path,
    name: str,
    piece: Piece,
    options: Options = Options(),
    advance: Advance = ignore,
) -> Iterator[Conversation | Rejected]:
    """Every row of a piece of a file.

    Args:
        name: how the rows name the file.
        advance: called with the number of bytes that were just read.

    Raises:
        DataError: the file cannot be read, or is damaged as a whole.
    """
    try:
        for row in reader_of(file, "data").read(file, name, piece, advance):
            if isinstance(row, Rejected):
                yield row
            elif isinstance(row, Section):
                yield _from_section(row, name, options)
            else:
                yield _from_record(row, name, options)
    except OSError as error:
        raise DataError(explain(file, error)) from error


def _from_record(record: Record, name: str, options: Options) -> Conversation | Rejected:
    text = record.text if record.text is not None else _text_of(record.value)
    shown = excerpt(text)
    try:
        row = parse_example(
            record.value, options.ignored, options.kind, is_test=options.is_test,
            columns=options.columns, named=options.format,
        )  # fmt: skip
    except Unusable as error:
        return Rejected(name, record.line, error.reason, error.detail, shown, error.field)
    return Conversation(
        name,
        record.line,
        row.messages,
        shown,
        left_out=frozenset(row.left_out),
        rejected=row.rejected,
        label=row.label,
        tools=row.tools,
        tags=tags_of(record.value, options.columns),
        format=row.format,
        thread=thread_of(record.value, options.columns),
        mapped=row.mapped,
    )


def _text_of(value: object) -> str:
    """The beginning of a row of a table, for excerpts."""
    if not isinstance(value, dict):
        return str(value)[: 4 * EXCERPT]
    parts, length = [], 0
    for key, inner in value.items():
        written = inner if isinstance(inner, str) else json.dumps(inner, default=str)
        parts.append(f"{key}: {written[: 4 * EXCERPT]}")
        length += len(parts[-1])
        if length > 4 * EXCERPT:
            break
    return ", ".join(parts)


def _from_section(section: Section, name: str, options: Options) -> Conversation | Rejected:
    """A question of a text and its answer; an objective that learns from more takes none."""
    shown = excerpt(section.question)
    if options.kind != "answers" and not options.is_test:
        detail = "a section has one answer: set data.sources=[], or finetune.objective=sft"
        return Rejected(name, section.line, NO_PAIR, detail, shown)
    turns = [
        {"role": "user", "content": section.question},
        {"role": "assistant", "content": section.answer},
    ]
    try:
        return Conversation(name, section.line, parse_messages(turns, answered=True), shown,
                            format=SECTION)  # fmt: skip
    except Unusable as error:
        return Rejected(name, section.line, error.reason, error.detail, shown, error.field)
