"""python-json-logger and structlog beside our JsonFormatter: the server's log lines for collectors.

Each is set up to write what our documentation promises: the time in UTC with its offset, the level
in small letters, the logger, the message, what the caller gave as `extra`, and the exception.
"""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pythonjsonlogger.json
import structlog

from bench.compared_libraries.code_lines import code_lines
from bench.compared_libraries.timing import import_ms, seconds_of
from pipeline.serving.logs import JsonFormatter

LINES = 5000
REQUEST = {
    "request_id": "req-1",
    "method": "POST",
    "path": "/v1/chat/completions",
    "status": 200,
    "seconds": 0.3123,
    "client": "127.0.0.1",
    "model": "bank",
    "prompt_tokens": 27,
    "completion_tokens": 32,
    "first_token_seconds": 0.0412,
    "finish_reasons": ["stop"],
}


class PythonJsonLogger(pythonjsonlogger.json.JsonFormatter):
    """With the time and the level as ours has them, which takes methods of its own."""

    def __init__(self) -> None:
        super().__init__(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "exc_info": "exception",
            },
            json_default=str,
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {**log_data, "level": log_data["level"].lower()}


def of_structlog() -> logging.Formatter:
    """structlog's formatter for records of the standard library."""

    def time(logger: Any, name: str, event: Any) -> Any:
        record = event["_record"]
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return {"time": at, **event}

    stdlib = structlog.stdlib
    return stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            stdlib.add_log_level,
            stdlib.add_logger_name,
            stdlib.ExtraAdder(),
            time,
        ],
        processors=[
            stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(default=str),
        ],
        use_get_message=True,
    )


FORMATTERS: dict[str, Callable[[], logging.Formatter]] = {
    "ours": JsonFormatter,
    "python-json-logger": PythonJsonLogger,
    "structlog": of_structlog,
}


def records() -> dict[str, logging.LogRecord]:
    """One of each kind, by what is special about it."""
    try:
        raise RuntimeError("a\nb")
    except RuntimeError:
        failed = sys.exc_info()
    return {
        "a request": record("request", extra=REQUEST),
        "arguments": record("trouble %s", 7),
        "an exception": record("it failed", exc_info=failed),
        "half a surrogate pair": record("request", extra={"path": "/\ud800"}),
        "a value that JSON does not know": record("saved", extra={"folder": Path("/a")}),
        "a date": record("saved", extra={"on": datetime(2026, 11, 29, tzinfo=UTC)}),
        "bytes": record("saved", extra={"body": b"\xff"}),
        "no number": record("saved", extra={"loss": float("nan")}),
        "an extra named as a field of the line": record("saved", extra={"level": "of detail"}),
        "a key that is no text": record("saved", extra={"counts": {1: 2}}),
    }


def record(
    message: str, *given: Any, extra: dict[str, Any] | None = None, exc_info: Any = None
) -> logging.LogRecord:
    logger = logging.getLogger("pipeline.serving")
    made = logger.makeRecord(
        logger.name, logging.INFO, "file.py", 1, message, given, exc_info, None, extra
    )
    made.created = 1.8e9
    return made


def measure() -> dict[str, Any]:
    # Records of its own for each, as formatters write into them.
    whole = {name: formatted(new(), records()) for name, new in FORMATTERS.items()}
    request = records()["a request"]

    def lines_of(formatter: logging.Formatter) -> Callable[[], None]:
        def write() -> None:
            for _ in range(LINES):
                formatter.format(request)

        return write

    seconds = seconds_of({name: lines_of(new()) for name, new in FORMATTERS.items()})
    return {
        "lines_that_say_another_thing_than_ours": {
            name: {kind: line for kind, line in lines.items() if line != whole["ours"][kind]}
            for name, lines in whole.items()
            if name != "ours"
        },
        "kinds_of_lines": len(whole["ours"]),
        "microseconds_per_line": {name: round(1e6 * s / LINES, 1) for name, s in seconds.items()},
        "import_ms": import_ms(
            {
                "ours": "import json, logging, datetime",
                "python-json-logger": "import json, logging, datetime, pythonjsonlogger.json",
                "structlog": "import json, logging, datetime, structlog",
            }
        ),
        "lines_of_code": {
            "ours": code_lines(JsonFormatter),
            "python-json-logger": code_lines(PythonJsonLogger),
            "structlog": code_lines(of_structlog),
        },
    }


def formatted(formatter: logging.Formatter, made: dict[str, logging.LogRecord]) -> dict[str, Any]:
    """What each line says, whatever the order of its fields; a text where it says nothing."""
    found = {}
    for kind, one in made.items():
        try:
            found[kind] = json.loads(formatter.format(one))
        except Exception as error:
            found[kind] = f"{type(error).__name__}: {error}"
        if isinstance(found[kind], dict) and "loss" in found[kind]:
            found[kind]["loss"] = str(found[kind]["loss"])
    return found
