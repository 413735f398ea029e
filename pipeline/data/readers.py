"""Reads conversations from files.

    .jsonl .ndjson   one object per line (row_formats.py, preference_rows.py)
    .md .txt         a title, then sections: `## question`, and its answer (markdown.py)

Each row becomes a Conversation or a Rejected. No content of a file, whatever its bytes, stops the
reader. Knows no tokenizer, and no row but the current one.
"""

import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pipeline.config.finetune import RowKind
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.markdown import read_sections
from pipeline.data.preference_rows import NO_PAIR, parse_example
from pipeline.data.row_formats import ParsedRow, shown
from pipeline.data.rows import EXCERPT, Conversation, Line, Rejected
from pipeline.models.chat.messages import Unusable

JSON_LINES = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md")
MAX_LINE_BYTES = 16 * 2**20


def find_files(folder: Path, patterns: tuple[str, ...], setting: str) -> list[Path]:
    """Files below a folder that match the globs: each once, in the order of patterns, then sorted.

    A pattern that is the name of a file means that file, even if it has brackets or stars in it.

    Raises:
        ConfigError: a pattern is not a glob below the folder.
        DataError: a pattern matches no file, or a file of an unknown kind.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            matches = sorted(p for p in folder.glob(pattern) if p.is_file())
            if (folder / pattern).is_file():
                matches = [folder / pattern]
        except (OSError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{setting}: {pattern!r} must be a name or glob below {folder} ({error})"
            ) from error
        if not matches:
            raise DataError(
                f"{setting}: no file in {folder} matches {pattern!r}: correct either of them"
            )
        for file in matches:
            if file.suffix.lower() not in JSON_LINES + TEXTS:
                raise DataError(
                    f"{file} ({setting}) is of an unknown kind: rename it to end in "
                    f"{', '.join(JSON_LINES + TEXTS)}, according to its content"
                )
            found[file] = None
    return list(found)


def read_file(
    file: Path,
    name: str,
    ignored: Collection[str] = (),
    advance: Callable[[int], None] = lambda _: None,
    *,
    kind: RowKind = "answers",
    is_test: bool = False,
) -> Iterator[Conversation | Rejected]:
    """Every row of a file.

    Args:
        name: how the rows name the file.
        ignored: fields of JSON rows to leave out, beside metadata.
        advance: called with the number of bytes that were just read.
        kind: what the objective learns from.
        is_test: whether these are questions with their expected answers.

    Raises:
        DataError: the file cannot be read.
    """
    suffix = file.suffix.lower()
    try:
        with file.open("rb") as stream:
            lines = _lines(stream, advance)
            if suffix in TEXTS:
                rows = read_sections(name, lines, is_markdown=suffix == ".md")
                yield from rows if kind == "answers" or is_test else map(_has_one_answer, rows)
            else:
                parse = partial(parse_example, ignored=frozenset(ignored), kind=kind)
                yield from _read_json_lines(name, lines, partial(parse, is_test=is_test))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}): correct the file or the data.* setting"
        ) from error


def _lines(stream: BinaryIO, advance: Callable[[int], None]) -> Iterator[Line]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES):
        number += 1
        advance(len(raw))
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while more := stream.readline(MAX_LINE_BYTES):
                advance(len(more))
                if more.endswith(b"\n"):
                    break
            head = raw[: 4 * EXCERPT].decode(errors="replace")
            yield Line(number, head, "line too long", f"over {MAX_LINE_BYTES // 2**20} MiB")
            continue
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        try:
            yield Line(number, raw.decode(), None)
        except UnicodeDecodeError as error:
            detail = f"byte {error.start + 1} of the line: {error.reason}"
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                detail = "the file is in UTF-16: save it as UTF-8"
            yield Line(number, raw.decode(errors="replace"), "bad UTF-8", detail)


def _read_json_lines(
    file: str, lines: Iterator[Line], parse: Callable[[object], ParsedRow]
) -> Iterator[Conversation | Rejected]:
    for line in lines:
        if line.fault:
            yield line.rejected(file, line.fault, line.detail)
        elif line.text.strip():
            try:
                row = parse(_parse_json(line.text))
            except Unusable as error:
                yield line.rejected(file, error.reason, error.detail, error.field)
            else:
                yield line.conversation(
                    file,
                    row.messages,
                    left_out=frozenset(row.left_out),
                    rejected=row.rejected,
                    label=row.label,
                    tools=row.tools,
                )


def _has_one_answer(row: Conversation | Rejected) -> Rejected:
    """A section of a text, where the objective learns from more than one answer."""
    if isinstance(row, Rejected):
        return row
    detail = "a section has one answer: set data.sources=[], or finetune.objective=sft"
    return Rejected(row.file, row.line, NO_PAIR, detail, row.excerpt)


def _parse_json(text: str) -> object:
    """A value of JSON. Duplicate keys, of which one would have no effect, and NaN are refused."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Unusable("bad JSON", f"{error.msg} at column {error.colno}") from error
    except Unusable:
        raise
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        raise Unusable("bad JSON", str(error)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = shown(next(key for key in found if keys.count(key) > 1))
        raise Unusable("bad JSON", f"the field {twice} is there twice in one object", twice)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise Unusable("bad JSON", f"{name} is not JSON: write null or a number")
