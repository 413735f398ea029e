"""Reads conversations from files: JSON lines of three kinds, and plain texts with headings.

    .jsonl .ndjson   one object per line: OpenAI's {"messages": […]}, {"prompt", "completion"}, or
                     NeMo's {"input", "output"}; the last two may have a "system"
    .txt .md         a title line, then sections: `## question`, and its answer in paragraphs

Each row becomes a Conversation or a Rejected. No content of a file, whatever its bytes, stops the
reader. Knows no tokenizer, and no row but the current one.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import ConfigError, DataError
from pipeline.models.chat.messages import Message, Unusable, parse_messages

JSON_LINES = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md")
PAIRS = (("prompt", "completion"), ("input", "output"))
MAX_LINE_BYTES = 16 * 2**20
EXCERPT = 120  # characters
_HEADING = re.compile(r"#{2,6}\s*(.*)")


@dataclass(frozen=True)
class Conversation:
    """A row that can be rendered: a training row, or a test question with its answer."""

    file: str
    line: int
    messages: list[Message]
    excerpt: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, with a reason and a detail as in Unusable."""

    file: str
    line: int
    reason: str
    detail: str
    excerpt: str


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
    file: Path, name: str, advance: Callable[[int], None] = lambda _: None
) -> Iterator[Conversation | Rejected]:
    """Every row of a file.

    Args:
        name: how the rows name the file.
        advance: called with the number of bytes that were just read.

    Raises:
        DataError: the file cannot be read.
    """
    reader = _read_text if file.suffix.lower() in TEXTS else _read_json_lines
    try:
        with file.open("rb") as stream:
            yield from reader(name, _lines(stream, advance))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}): correct the file or the data.* setting"
        ) from error


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    fault: str | None  # why the line cannot be used
    detail: str = ""

    def rejected(self, file: str, reason: str, detail: str) -> Rejected:
        return Rejected(file, self.number, reason, detail, _excerpt(self.text))


def _lines(stream: BinaryIO, advance: Callable[[int], None]) -> Iterator[_Line]:
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
            yield _Line(number, head, "line too long", f"over {MAX_LINE_BYTES // 2**20} MiB")
            continue
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        try:
            yield _Line(number, raw.decode(), None)
        except UnicodeDecodeError as error:
            detail = f"byte {error.start + 1} of the line: {error.reason}"
            yield _Line(number, raw.decode(errors="replace"), "bad UTF-8", detail)


def _read_json_lines(file: str, lines: Iterator[_Line]) -> Iterator[Conversation | Rejected]:
    for line in lines:
        if line.fault:
            yield line.rejected(file, line.fault, line.detail)
        elif line.text.strip():
            try:
                messages = _messages_of(_parse_json(line.text))
                yield Conversation(file, line.number, messages, _excerpt(line.text))
            except Unusable as error:
                yield line.rejected(file, error.reason, error.detail)


# Fields that only rows with tools have in OpenAI's format: of the row, and of a turn.
TOOLS, CALLS = ("tools", "functions"), ("tool_calls", "function_call")


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Unusable("bad JSON", f"{error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        raise Unusable("bad JSON", str(error)) from error


def _messages_of(row: object) -> list[Message]:
    if not isinstance(row, dict):
        raise Unusable(
            "bad JSON", "each line must be one object (`jq -c '.[]'` turns an array into lines)"
        )
    turns = row["messages"] if isinstance(row.get("messages"), list) else []
    if any(row.get(key) for key in TOOLS) or any(
        turn.get(key) for turn in turns if isinstance(turn, dict) for key in CALLS
    ):
        raise Unusable("tool calls", "training uses text only: remove the row, or write it as text")
    if "messages" in row:
        return parse_messages(row["messages"], answered=True)
    for question, answer in PAIRS:
        if question in row or answer in row:
            turns = [{"role": "user", "content": _trim(row.get(question))}]
            turns.append({"role": "assistant", "content": _trim(row.get(answer))})
            if row.get("system"):
                turns.insert(0, {"role": "system", "content": _trim(row["system"])})
            return parse_messages(turns, answered=True)
    known = "messages; " + "; ".join(f"{q} and {a}" for q, a in PAIRS)
    raise Unusable("unknown format", f"fields {_excerpt(', '.join(row))}; known: {known}")


def _trim(value: object) -> object:
    """The text without outer white space: in these kinds it separates; here the template does."""
    return value.strip() if isinstance(value, str) else value


@dataclass
class _Section:
    """A heading and the text below it. heading: None for text before the first heading."""

    start: _Line
    heading: str | None
    fault: _Line | None
    body: list[str] = field(default_factory=list)

    def close(self, file: str) -> Conversation | Rejected:
        if self.fault:
            return self.fault.rejected(file, str(self.fault.fault), self.fault.detail)
        if self.heading is None:
            return self.start.rejected(
                file, "text outside a section", "there is no `## question` above it"
            )
        paragraphs = re.split(r"\n{2,}", "\n".join(self.body).strip())
        answer = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)
        turns = [
            {"role": "user", "content": self.heading},
            {"role": "assistant", "content": answer},
        ]
        try:
            messages = parse_messages(turns, answered=True)
        except Unusable as error:
            return self.start.rejected(file, error.reason, error.detail)
        return Conversation(file, self.start.number, messages, _excerpt(self.start.text))


def _read_text(file: str, lines: Iterator[_Line]) -> Iterator[Conversation | Rejected]:
    section: _Section | None = None
    has_title = False
    for line in lines:
        text = line.text.strip()
        fault = line if line.fault else None
        if heading := _HEADING.match(text):
            if section:
                yield section.close(file)
            section = _Section(line, heading[1], fault)
        elif section:
            section.body.append(text)
            section.fault = section.fault or fault
        elif text and (has_title or fault):
            section = _Section(line, None, fault)
        elif text:
            has_title = True
    if section:
        yield section.close(file)


def _excerpt(text: str) -> str:
    text = " ".join(text[: 4 * EXCERPT].split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
