import io
import json
import logging
from datetime import datetime
from typing import Any

from pipeline.serving.logs import server_log


def logged(*, write: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    with server_log(stream):
        write()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_time_level_and_extra_fields() -> None:
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
        logging.getLogger("some.package").info("chatter")
        logging.getLogger("some.package").warning("trouble %s", 7)

    assert [line["message"] for line in logged(write=write)] == ["trouble 7"]


def test_nothing_is_logged_afterwards() -> None:
    stream = io.StringIO()
    with server_log(stream):
        pass
    logging.getLogger("pipeline.serving").warning("later")
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_lines_for_people() -> None:
    stream, log = Terminal(), logging.getLogger("pipeline.serving")
    answer = {
        "request_id": "req-1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "seconds": 0.3123,
        "client": "127.0.0.1",
        "key": "anna",
        "model": "bank",
        "prompt_tokens": 27,
        "completion_tokens": 32,
        "queued_seconds": 0.0,
        "first_token_seconds": 0.0412,
        "finish_reasons": ["stop"],
    }
    refusal = {"request_id": "req-2", "method": "GET", "path": "/x", "status": 404, "seconds": 0.0}
    with server_log(stream):
        log.info("request", extra=answer)
        log.info("request", extra=refusal)
        log.warning("low on %s", "disk")
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            log.exception("unexpected error", extra={"request_id": "req-3"})
    lines = [line.partition(" ") for line in stream.getvalue().splitlines()]
    assert all(datetime.strptime(time, "%H:%M:%S") for time, _, _ in lines[:4])
    assert [rest for _, _, rest in lines[:4]] == [
        "200 POST /v1/chat/completions 0.31 s, first token 0.041 s, 27 + 32 tokens (stop) "
        "request_id=req-1 key=anna",
        "404 GET /x 0.00 s request_id=req-2",
        "warning: low on disk",
        "error: unexpected error request_id=req-3",
    ]
    assert stream.getvalue().endswith("RuntimeError: broken\n")


def test_what_a_client_names_neither_ends_a_line_nor_steers_the_terminal() -> None:
    stream, log = Terminal(), logging.getLogger("pipeline.serving")
    odd = "/é\n08:15:02 200 GET /\x1b[2J\x9b1m\u202e\ud800"
    refusal = {"method": "GET", "path": odd, "status": 404, "seconds": 0.0, "error": "a\rb"}
    with server_log(stream):
        log.info("request", extra=refusal)
        log.warning("no %s", "a\nb")
    request, warning = stream.getvalue().split("\n")[:2]
    assert request[9:] == (
        r"404 GET /é\n08:15:02 200 GET /\x1b[2J\x9b1m\u202e\ud800 0.00 s error=a\rb"
    )
    assert warning[9:] == r"warning: no a\nb"
