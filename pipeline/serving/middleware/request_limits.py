"""Limits of a request: its size, the time for its body, and the time for its response.

Limits of connections, and of headers that never end, are in http_limits.py.
"""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.middleware import request_context
from pipeline.serving.openai import errors

BODYLESS = ("GET", "HEAD", "OPTIONS")
FINAL_EVENT_SECONDS = 1.0


@dataclass(frozen=True)
class RequestLimits:
    """Limits of a request.

    Attributes:
        header_bytes: size of all headers together.
        body_seconds: time until the body is complete.
        request_seconds: time until the response is complete.
    """

    header_bytes: int
    body_bytes: int
    body_seconds: float
    request_seconds: float


class RequestLimitsMiddleware:
    """Reads the complete body before it calls the application, which so never waits for it."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self._app, self._limits = app, limits

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

        limit = self._limits.request_seconds
        try:
            async with asyncio.timeout(limit):
                await self._app(scope, receive, sending)
        except TimeoutError:
            text = f"the response was not complete after {limit:g} s (serve.request_timeout)"
            request_context.current().error = text
            if begun is None:
                await _refusal(504, text, "timeout", "server_error")(scope, receive, send)
            elif not whole:
                request_context.current().late_status = 504
                if "event-stream" in Headers(raw=begun["headers"])["content-type"]:
                    await _end_stream(text, send)

    def _check_headers(self, scope: Scope) -> JSONResponse | None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._limits.header_bytes:
            text = f"the headers have {size} bytes: at most {self._limits.header_bytes} are allowed"
            return _refusal(431, text, "headers_too_large")
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            return self._too_large(length)
        return None

    async def _read(self, receive: Receive, messages: list[Message]) -> JSONResponse | None:
        """Read the body's messages into `messages`. Returns the refusal, if there is one."""
        size, more = 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    messages.append(await receive())
                    size += len(messages[-1].get("body", b""))
                    more = messages[-1].get("more_body", False)
                    if size > self._limits.body_bytes:
                        return self._too_large("too many")
        except TimeoutError:
            text = f"the body was not complete after {self._limits.body_seconds:g} s"
            return _refusal(408, text, "request_timeout")
        return None

    def _too_large(self, size: str) -> JSONResponse:
        text = f"the body has {size} bytes: at most {self._limits.body_bytes} bytes are allowed"
        return _refusal(413, text, "request_too_large")


async def _end_stream(text: str, send: Send) -> None:
    """Send the reason as the stream's last event, unless the client has stopped reading."""
    body = json.dumps(errors.error_body(text, "server_error", code="timeout"))
    event = f"data: {body}\n\n".encode()
    with suppress(TimeoutError):
        async with asyncio.timeout(FINAL_EVENT_SECONDS):
            await send({"type": "http.response.body", "body": event, "more_body": False})


def _refusal(
    status: int, text: str, code: str, kind: str = "invalid_request_error"
) -> JSONResponse:
    """A refusal that closes the connection, since the rest of the request is not read."""
    return JSONResponse(errors.error_body(text, kind, code=code), status, {"Connection": "close"})


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    left = iter(messages)

    async def replayed() -> Message:
        return next(left, None) or await receive()

    return replayed
