"""JSON files: an array of objects, one object, or objects on lines of their own.

An array is read an element at a time, so it may be larger than the memory, and a bad element is
rejected alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from pipeline.core.errors import DataError, short
from pipeline.data.readers import record
from pipeline.data.readers.json_lines import JSON_LINES
from pipeline.data.readers.json_values import parse_json
from pipeline.data.readers.lines import decoded
from pipeline.data.readers.opening import Opened, explain_encoding, opened
from pipeline.data.readers.record import Advance, Piece, Reader, Record, Row
from pipeline.models.chat.messages import Unusable

_HEAD, _BLOCK = 2**16, 2**20
_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"[ \t\r\n]*")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]|"', re.DOTALL)
_LINES = "`jq -c '.[]' FILE > FILE.jsonl` writes an array as lines"


def _read(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    with opened(file) as source:
        head = source.stream.read(_HEAD)
        while not (first := head.removeprefix(_BOM).lstrip()) and len(head) < record.MAX_ROW_BYTES:
            if not (more := source.stream.read(_HEAD)):
                return
            head += more
        if what := explain_encoding(str(file), head):
            raise DataError(f"{file}: {what}")
        if first[:1] == b"[":
            yield from _elements(file, name, _Window(source, head, advance))
            return
        rest = source.stream.read(record.MAX_ROW_BYTES)
    if _is_lines(first):
        yield from JSON_LINES.read(file, name, piece, advance)
        return
    advance(len(head) + len(rest))
    yield from _one(file, name, head.removeprefix(_BOM) + rest)


def _is_lines(text: bytes) -> bool:
    """Whether a text begins with a line that is an object of its own, or is no JSON at all."""
    line = text.partition(b"\n")[0].strip()
    return not text.startswith(b"{") or (line.startswith(b"{") and line.endswith(b"}"))


def _one(file: Path, name: str, raw: bytes) -> Iterator[Row]:
    """A file that is one object, on several lines."""
    if len(raw) >= record.MAX_ROW_BYTES:
        raise DataError(
            f"{file} is one object of over {record.MAX_ROW_BYTES // 2**20} MiB: write its rows as "
            "lines, as `jq -c '.data[]' FILE > FILE.jsonl` does for a list named data"
        )
    line = decoded(file, 1, raw)
    try:
        if line.fault:
            raise Unusable(line.fault, line.detail)
        value = parse_json(line.text)
    except Unusable as error:
        if "Extra data" in error.detail:
            raise DataError(
                f"{file} holds objects that are neither lines nor an array: "
                f"`jq -c . {file} > NEW.jsonl` writes them as lines"
            ) from error
        raise DataError(f"{file} is not JSON ({error.detail}): correct it") from error
    if isinstance(value, dict):
        lists = [
            k for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)
        ]
        if len(value) == len(lists) == 1 and lists[0] not in ("messages", "conversations"):
            raise DataError(
                f"{file} is one object with a list of rows in {lists[0]!r}: write them as lines: "
                f"`jq -c '.{lists[0]}[]' {file} > NEW.jsonl`"
            )
    yield Record(1, value, line.text)


class _Window:
    """The part of a file that is in memory.

    data: from `at` on it is still to be read. line: the number of the line that `at` is in.
    """

    def __init__(self, source: Opened, head: bytes, advance: Advance) -> None:
        self._source, self._advance = source, advance
        self.data, self.at, self.line = head, 0, 1
        self._told = 0
        self._tell()

    def _tell(self) -> None:
        now = self._source.raw.tell()
        self._advance(now - self._told)
        self._told = now

    def __len__(self) -> int:
        """How many bytes are in memory and still to be read."""
        return len(self.data) - self.at

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        block = self._source.stream.read(_BLOCK)
        self.data = self.data[self.at :] + block
        self.at = 0
        self._tell()
        return bool(block)

    def take(self, count: int) -> bytes:
        """The next bytes, which are read from here on."""
        taken = self.data[self.at : self.at + count]
        self.line += taken.count(b"\n")
        self.at += count
        return taken

    def next(self) -> bytes:
        """The next byte that is no white space; empty at the end of the file."""
        while True:
            blank = _BLANK.match(self.data, self.at)
            assert blank
            self.take(blank.end() - self.at)
            if len(self) or not self.more():
                return self.data[self.at : self.at + 1]


def _elements(file: Path, name: str, window: _Window) -> Iterator[Row]:
    window.take(window.data.index(b"[") + 1)
    number = 0  # of the element's line, or the next one if a line holds several
    while (begin := window.next()) != b"]":
        if not begin:
            _truncated(file, window)
        number = max(window.line, number + 1)
        raw = window.take(_length(file, window))
        yield _element(file, name, number, raw)
        behind = window.next()
        if behind == b",":
            window.take(1)
        elif behind != b"]":
            _truncated(file, window)
    window.take(1)
    if window.next():
        raise DataError(
            f"{file}:{window.line}: there is more behind the array's end: write one array, or "
            f"lines; {_LINES}"
        )


def _length(file: Path, window: _Window) -> int:
    """How many bytes the next element has: up to the comma or bracket behind it."""
    depth, at = 0, 0  # from the window's place on
    while True:
        base, scanned = window.at, len(window)
        for token in _TOKEN.finditer(window.data, base + at):
            mark = token[0]
            if mark == b'"':  # a text that ends beyond the window
                scanned = token.start() - base
                break
            if mark in b"[{":
                depth += 1
            elif mark in b"]}":
                depth -= 1
            if depth < 0 or (depth == 0 and mark == b","):
                return token.start() - base
        at = scanned
        if len(window) > record.MAX_ROW_BYTES:
            raise DataError(
                f"{file}:{window.line}: the element that begins here is over "
                f"{record.MAX_ROW_BYTES // 2**20} MiB: close its bracket or quote, or shorten it"
            )
        if not window.more():
            _truncated(file, window)


def _element(file: Path, name: str, line: int, raw: bytes) -> Row:
    found = decoded(file, line, raw.rstrip())
    if len(raw) > (most := record.MAX_ROW_BYTES):
        return found.rejected(name, "line too long", f"over {most // 2**20} MiB")
    if found.fault:
        return found.rejected(name, found.fault, found.detail)
    try:
        return Record(line, parse_json(found.text), found.text)
    except Unusable as error:
        return found.rejected(name, error.reason, error.detail, error.field)


def _truncated(file: Path, window: _Window) -> NoReturn:
    near = short(window.data[window.at :][:40].decode(errors="replace"), 40)
    raise DataError(
        f"{file}:{window.line}: the array has no end ({near!r}): the file is truncated or damaged: "
        f"copy it again; {_LINES}"
    )


JSON_ARRAY = Reader("json", "JSON arrays", (".json",), _read)
