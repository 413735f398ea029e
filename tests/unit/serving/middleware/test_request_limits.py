"""Requests that are too large or too slow, and responses that take too long."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse

from pipeline.serving.middleware.request_limits import RequestLimits, RequestLimitsMiddleware
from tests.unit.serving.asgi import ask

BOUNDS = RequestLimits(header_bytes=2000, body_bytes=1000, body_seconds=0.2, request_seconds=0.2)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await JSONResponse({"size": len(body)})(scope, receive, send)


def bounded(app: Any = echo) -> RequestLimitsMiddleware:
    return RequestLimitsMiddleware(app, BOUNDS)


async def pieces(*sizes: int, wait: float = 0) -> AsyncIterator[bytes]:
    for size in sizes:
        await asyncio.sleep(wait)
        yield b"x" * size


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_body_within_the_limits_is_complete(size: int) -> None:
    assert ask(bounded(), "POST", content=b"x" * size).json() == {"size": size}
    assert ask(bounded(), "POST", content=pieces(size // 2, size - size // 2)).json() == {
        "size": size
    }
    assert ask(bounded(), "GET").json() == {"size": 0}


def test_a_large_body_is_413_with_and_without_its_length() -> None:
    for content in (b"x" * 1001, pieces(600, 600, 10**9)):
        response = ask(bounded(), "POST", content=content)
        assert response.status_code == 413
        assert response.headers["connection"] == "close"
        assert "1000 bytes are allowed" in response.json()["error"]["message"]


def test_large_headers_are_431() -> None:
    response = ask(bounded(), headers={f"x-{i}": "y" * 100 for i in range(30)})
    assert response.status_code == 431
    assert "2000 are allowed" in response.json()["error"]["message"]


def test_a_body_a_byte_at_a_time_is_408() -> None:
    response = run_raw(bounded(), [{"type": "http.request", "body": b"x", "more_body": True}])
    assert response[0]["status"] == 408
    assert b"after 0.2 s" in response[1]["body"]


def test_a_client_that_disconnects_in_its_body_reaches_nothing() -> None:
    reached: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    part = {"type": "http.request", "body": b"x", "more_body": True}
    assert run_raw(bounded(app), [part, {"type": "http.disconnect"}]) == []
    assert reached == []


def test_a_response_that_does_not_begin_is_504() -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("freed")

    response = ask(bounded(app), "POST")
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    assert ended == ["freed"]


def test_a_timed_out_stream_ends_with_an_error_event() -> None:
    freed: list[bool] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"data: {}\n\n"
            await asyncio.sleep(60)
        finally:
            freed.append(True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)

    response = ask(bounded(app), "POST")
    assert response.status_code == 200
    first, last, end = response.text.split("\n\n")
    assert (first, end) == ("data: {}", "")
    assert "not complete after 0.2 s" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert freed == [True]


def test_a_stalled_reader_frees_its_response() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response(b"x", media_type="text/event-stream")(scope, receive, send)

    async def run() -> None:
        async def never(message: Any) -> None:
            await asyncio.sleep(60)

        scope = {"type": "http", "method": "GET", "path": "/v1/x", "headers": []}
        await bounded(app)(scope, asyncio.Queue[Any]().get, never)

    asyncio.run(asyncio.wait_for(run(), 5))


def run_raw(app: RequestLimitsMiddleware, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages that a client sends before it falls silent, and what it is sent."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        arrived = asyncio.Queue[dict[str, Any]]()
        for message in messages:
            arrived.put_nowait(message)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": []}
        await app(scope, arrived.get, send)

    asyncio.run(asyncio.wait_for(run(), 5))
    return sent
