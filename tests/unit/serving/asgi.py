"""ASGI applications that are called in process, and a trivial one."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send


def ask(app: ASGIApp, method: str = "GET", path: str = "/v1/x", **given: Any) -> httpx.Response:
    """One request, answered by an event loop of its own."""

    (response,) = ask_all(app, (method, path, given))
    return response


def ask_all(app: ASGIApp, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
    """Requests one after another in one event loop: an engine's process belongs to a loop.

    Args:
        requests: method, path, and what httpx's `request` is given beside them.
    """

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [await client.request(method, path, **given) for method, path, given in requests]

    return asyncio.run(send())


def answering(answer: Callable[[Request], Any]) -> ASGIApp:
    """An application that answers every request with the JSON that `answer` gives."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given = answer(Request(scope, receive))
        response = given if isinstance(given, Response) else JSONResponse(given)
        await response(scope, receive, send)

    return app
