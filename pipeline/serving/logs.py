"""The server's log: one JSON object a line on standard error, written by a thread of its own.

A terminal or a collector that takes no more lines then delays no answer.
"""

import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, then what the caller gave as `extra`."""

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
        return json.dumps(line, default=str)


class _Unchanged(logging.handlers.QueueHandler):
    """Hands records over as they are; the original would format them, and drop the exception."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


@contextmanager
def json_logs(stream: TextIO | None = None) -> Iterator[None]:
    """Requests, and other libraries' warnings, as JSON lines for as long as the block runs.

    Args:
        stream: standard error if None.
    """
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    target = logging.StreamHandler(stream or sys.stderr)
    target.setFormatter(JsonFormatter())
    listener = logging.handlers.QueueListener(records, target)
    handler, root, ours = _Unchanged(records), logging.getLogger(), logging.getLogger("pipeline")
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
