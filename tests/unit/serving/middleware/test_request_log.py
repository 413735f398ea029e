"""Every request gets an id, a line in the log, and a response even to unexpected errors."""

import asyncio
import logging
import time
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from pipeline.serving.middleware import request_context
from pipeline.serving.middleware.request_log import InFlight, RequestLogMiddleware
from tests.unit.serving.asgi import answering, ask


class Layered:
    """The layer around an application, what it counted, and what it counts now."""

    def __init__(self, answer: Any = lambda request: {"id": request_context.current().id}) -> None:
        self.failed: list[int] = []
        self.in_flight = InFlight()
        self.app = RequestLogMiddleware(answering(answer), self.in_flight, self.failed.append)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "pipeline.serving")

    def read() -> list[dict[str, Any]]:
        return [vars(record) for record in caplog.records if record.message == "request"]

    return read


@pytest.mark.parametrize("given", ["abc-1", "0af7651916cd43dd8448eb211c80319c", "a.b/c:d@e+f=g_h"])
def test_a_clients_request_id_is_kept(given: str, lines: Any) -> None:
    response = ask(Layered().app, headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == response.json()["id"] == given
    assert lines()[0]["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "é"])
def test_an_id_that_could_forge_a_log_line_is_replaced(given: str) -> None:
    made = {
        ask(Layered().app, headers={"X-Request-Id": given.encode()}).headers["x-request-id"]
        for _ in range(2)
    }
    assert len(made) == 2
    assert all(id.startswith("req-") for id in made)


def test_a_line_has_the_outcome_and_no_secrets(lines: Any) -> None:
    def answer(request: Request) -> Any:
        call = request_context.current()
        call.model, call.prompt_tokens, call.completion_tokens = "bank", 7, 3
        call.first_token = 0.123456
        call.finish_reasons.append("stop")
        time.sleep(0.01)
        return {"id": "x"}

    ask(
        Layered(answer).app,
        "POST",
        "/v1/chat/completions?api_key=secret-query",
        headers={"authorization": "Bearer secret-key"},
        content=b"secret-prompt",
    )
    (line,) = lines()
    assert "secret" not in repr({k: v for k, v in line.items() if k != "args"})
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (line["model"], line["prompt_tokens"], line["completion_tokens"]) == ("bank", 7, 3)
    assert line["first_token_seconds"] == 0.1235
    assert line["finish_reasons"] == ["stop"]
    assert 0.01 <= line["seconds"] < 10
    assert "error" not in line


@pytest.mark.parametrize("path", ["/health/live", "/v1/health/ready", "/metrics"])
def test_probes_are_not_logged_and_do_not_delay_draining(path: str, lines: Any) -> None:
    layered = Layered(lambda request: {"count": layered.in_flight.count})
    assert ask(layered.app, path=path).json() == {"count": 0}
    assert ask(layered.app).json() == {"count": 1}
    assert layered.in_flight.count == 0
    assert len(lines()) == 1


def test_an_unexpected_error_is_a_response_in_openais_format(
    lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Request) -> Any:
        raise RuntimeError("a detail that is not the client's")

    layered = Layered(answer)
    response = ask(layered.app, headers={"X-Request-Id": "it"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "details of it" in response.json()["error"]["message"]
    assert "a detail" not in response.text
    assert layered.failed == [500]
    (line,) = lines()
    assert line["error"] == "RuntimeError: a detail that is not the client's"
    assert "Traceback" in caplog.text
    assert layered.in_flight.count == 0


@pytest.mark.parametrize(
    ("status", "late", "error", "cut"),
    [
        (200, None, None, 0),
        (200, 500, "the engine failed", 1),
        (503, None, "the engine failed", 1),
        (503, None, None, 0),
        (400, None, "invalid_value stop", 0),
        (request_context.CLIENT_CLOSED_REQUEST, None, None, 0),
    ],
)
def test_requests_that_the_server_failed_are_counted(
    status: int, late: int | None, error: str | None, cut: int
) -> None:
    def answer(request: Request) -> Any:
        request_context.current().late_status, request_context.current().error = late, error
        return Response(status_code=status)

    layered = Layered(answer)
    ask(layered.app)
    assert layered.in_flight.failed == cut


@pytest.mark.parametrize("path", ["/health/ready", "/v1/health/ready"])
def test_a_probe_that_gets_503_is_not_a_failed_request(path: str) -> None:
    layered = Layered(lambda request: Response(status_code=503))
    assert ask(layered.app, path=path).status_code == 503
    assert layered.failed == []


def test_a_failure_after_the_first_byte_is_counted() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle")

    async def ignored(message: Any) -> None:
        pass

    failed: list[int] = []
    scope = {"type": "http", "method": "GET", "path": "/v1/x", "headers": []}
    asyncio.run(
        RequestLogMiddleware(broken, InFlight(), failed.append)(
            scope, asyncio.Queue[Any]().get, ignored
        )
    )
    assert failed == [500]


def test_refusals_are_counted_and_disconnected_clients_are_not() -> None:
    for status, counted in (
        (200, []),
        (404, [404]),
        (503, [503]),
        (request_context.CLIENT_CLOSED_REQUEST, []),
    ):
        layered = Layered(lambda request, status=status: Response(status_code=status))
        ask(layered.app)
        assert layered.failed == counted


def test_a_draining_server_refuses_what_is_new_and_finishes_what_is_not() -> None:
    gate = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await Response("whole")(scope, receive, send)

    async def run() -> None:
        import httpx

        in_flight = InFlight()
        layered = RequestLogMiddleware(app, in_flight, lambda status: None)
        transport = httpx.ASGITransport(layered)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            old = asyncio.create_task(client.post("/v1/chat/completions"))
            while in_flight.count == 0:
                await asyncio.sleep(0)
            in_flight.draining = True
            new = await client.post("/v1/chat/completions")
            assert new.status_code == 503
            assert new.json()["error"]["code"] == "shutting_down"
            assert new.headers["connection"] == "close"
            assert int(new.headers["retry-after"]) > 0
            assert in_flight.count == 1
            gate.set()
            assert (await old).text == "whole"
            assert (await client.get("/v1/models")).status_code == 200
            assert in_flight.count == 0

    asyncio.run(asyncio.wait_for(run(), 10))
