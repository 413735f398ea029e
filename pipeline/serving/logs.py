"""The server's log on standard error: JSON lines for collectors, plain text for a terminal.

A separate thread writes it, so that a slow terminal or collector delays no request.
"""

import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from pipeline.core.secrets import mask

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """time, level, logger and message, then the caller's `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: v for name, v in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _masked(json.dumps(line, default=str), record)


class TextFormatter(logging.Formatter):
    """A short line for a person: `08:15:02 200 POST /v1/chat/completions 0.31 s …`."""

    def format(self, record: logging.LogRecord) -> str:
        given = {name: v for name, v in vars(record).items() if name not in _STANDARD}
        line = datetime.fromtimestamp(record.created).strftime("%H:%M:%S ")
        if record.getMessage() == "request":
            line += _request(given)
        else:
            level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            line += level + record.getMessage()
        line = _printable(line + "".join(f" {name}={value}" for name, value in given.items()))
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return _masked(line, record)


def _masked(line: str, record: logging.LogRecord) -> str:
    """A line without secrets. A request's own has none, and is by far the most frequent."""
    return line if record.getMessage() == "request" else mask(line)


def _printable(text: str) -> str:
    """Escapes control characters and line breaks.

    Paths and field names come from clients, who must not control the terminal or forge log lines.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _request(given: dict[str, Any]) -> str:
    """The beginning of a request's line. Removes the fields that it shows from `given`."""
    head = f"{given.pop('status', '-')} {given.pop('method')} {given.pop('path')}"
    parts = [f"{head} {given.pop('seconds'):.2f} s"]
    if (first := given.pop("first_token_seconds", None)) is not None:
        parts.append(f"first token {first:.3f} s")
    if "prompt_tokens" in given:
        tokens = f"{given.pop('prompt_tokens')} + {given.pop('completion_tokens')} tokens"
        parts.append(f"{tokens} ({', '.join(given.pop('finish_reasons')) or 'none ended'})")
    for name in ("client", "model", "queued_seconds"):
        given.pop(name, None)
    return ", ".join(parts)


class _RecordQueueHandler(logging.handlers.QueueHandler):
    """Queues records unchanged; the base class would format them and drop the exception."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


@contextmanager
def server_log(stream: TextIO | None = None) -> Iterator[None]:
    """Log requests, and warnings of libraries, while the block runs.

    Args:
        stream: standard error if None; JSON unless it is a terminal.
    """
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    target = logging.StreamHandler(stream or sys.stderr)
    target.setFormatter(TextFormatter() if target.stream.isatty() else JsonFormatter())
    listener = logging.handlers.QueueListener(records, target)
    handler = _RecordQueueHandler(records)
    root, ours = logging.getLogger(), logging.getLogger("pipeline")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)
        listener.stop()
