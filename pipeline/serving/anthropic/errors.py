"""Errors of any layer in Anthropic's format, for the paths of the Messages API."""

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.anthropic.protocol import PATH, error_body


class MessagesErrors:
    """Translates the bodies of error responses; others pass as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        parts: list[bytes] = []

        async def translating(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
                return
            if start is None:
                await send(message)
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                body = _translated(b"".join(parts), start)
                MutableHeaders(scope=start)["content-length"] = str(len(body))
                await send(start)
                await send({**message, "body": body})

        await self._app(scope, receive, translating)


def _translated(body: bytes, start: Message) -> bytes:
    try:
        text = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body
    request_id = Headers(raw=start["headers"]).get("x-request-id")
    return json.dumps(error_body(text, start["status"], request_id)).encode()
