"""How large a request may be, how slowly it may come, and how long its answer may take.

Connections, and headers that do not end, are the wire's (wire.py): they never get this far.
"""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.middleware import request_log
from pipeline.serving.openai import protocol

BODYLESS = ("GET", "HEAD", "OPTIONS")
LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True)
class Bounds:
    """header_bytes: of all headers together. body_seconds: until the body is whole.
    request_seconds: until the answer is."""

    header_bytes: int
    body_bytes: int
    body_seconds: float
    request_seconds: float


class Bounded:
    """The layer. It holds the body until it is whole, so that what is below never waits for it."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app, self._bounds = app, bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._check_headers(scope)
        messages: list[Message] = []
        if refused is None and scope["method"] not in BODYLESS:
            refused = await self._read(receive, messages)
        if refused:
            await refused(scope, receive, send)
        elif not messages or messages[-1]["type"] != "http.disconnect":
            await self._within_time(scope, _replayed(messages, receive), send)

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: Message | None = None
        whole = False

        async def sending(message: Message) -> None:
            nonlocal begun, whole
            begun = begun or message
            whole = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        limit = self._bounds.request_seconds
        try:
            async with asyncio.timeout(limit):
                await self._app(scope, receive, sending)
        except TimeoutError:
            text = f"the answer was not whole after {limit:g} s"
            request_log.current().error = text
            if begun is None:
                await _refusal(504, text, "timeout", "server_error")(scope, receive, send)
            elif not whole:
                request_log.current().late_status = 504
                if "event-stream" in Headers(raw=begun["headers"])["content-type"]:
                    await _end_stream(text, send)

    def _check_headers(self, scope: Scope) -> JSONResponse | None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._bounds.header_bytes:
            text = f"the headers have {size} bytes, {self._bounds.header_bytes} are allowed"
            return _refusal(431, text, "headers_too_large")
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._bounds.body_bytes:
            return self._too_large(f"{length} bytes")
        return None

    async def _read(self, receive: Receive, messages: list[Message]) -> JSONResponse | None:
        """Put the body's messages into `messages`; or why they are not taken."""
        size, more = 0, True
        try:
            async with asyncio.timeout(self._bounds.body_seconds):
                while more:
                    messages.append(await receive())
                    size += len(messages[-1].get("body", b""))
                    more = messages[-1].get("more_body", False)
                    if size > self._bounds.body_bytes:
                        return self._too_large("more")
        except TimeoutError:
            text = f"the body was not whole after {self._bounds.body_seconds:g} s"
            return _refusal(408, text, "request_timeout")
        return None

    def _too_large(self, size: str) -> JSONResponse:
        text = f"the body has {size}, {self._bounds.body_bytes} bytes are allowed"
        return _refusal(413, text, "request_too_large")


async def _end_stream(text: str, send: Send) -> None:
    """Say in an event stream why it ends; a client that no longer reads is not waited for."""
    body = json.dumps(protocol.error_body(text, "server_error", code="timeout"))
    event = f"data: {body}\n\n".encode()
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            await send({"type": "http.response.body", "body": event, "more_body": False})


def _refusal(
    status: int, text: str, code: str, kind: str = "invalid_request_error"
) -> JSONResponse:
    """A refusal behind which the connection closes: the rest of the request is not read."""
    return JSONResponse(protocol.error_body(text, kind, code=code), status, {"Connection": "close"})


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    left = iter(messages)

    async def replayed() -> Message:
        return next(left, None) or await receive()

    return replayed
