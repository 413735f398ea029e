import io
import json
import logging
from datetime import datetime
from typing import Any

from pipeline.serving.logs import json_logs


def logged(*, write: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    with json_logs(stream):
        write()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_time_level_and_what_was_given() -> None:
    log = logging.getLogger("pipeline.serving")
    (line,) = logged(write=lambda: log.info("request", extra={"request_id": "a\nb", "seconds": 1}))
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    assert line["level"] == "info"
    assert line["message"] == "request"
    assert line["request_id"] == "a\nb"
    assert set(line) == {"time", "level", "logger", "message", "request_id", "seconds"}


def test_an_exception_is_in_its_line() -> None:
    def fail() -> None:
        try:
            raise RuntimeError("a\nb")
        except RuntimeError:
            logging.getLogger("uvicorn.error").exception("it failed")

    (line,) = logged(write=fail)
    assert line["exception"].startswith("Traceback")
    assert "RuntimeError: a\nb" in line["exception"]


def test_other_libraries_are_heard_when_they_warn_only() -> None:
    def write() -> None:
        logging.getLogger("some.library").info("chatter")
        logging.getLogger("some.library").warning("trouble %s", 7)

    assert [line["message"] for line in logged(write=write)] == ["trouble 7"]


def test_nothing_is_logged_afterwards() -> None:
    stream = io.StringIO()
    with json_logs(stream):
        pass
    logging.getLogger("pipeline.serving").warning("later")
    assert stream.getvalue() == ""
