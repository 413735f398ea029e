"""Copies of requests and responses, for the log (serve.log_content) and training (serve.record).

Nothing is copied if both are off. A response is recorded only if the request has the header
`X-Record-Consent: yes`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.middleware import request_context

PATHS = ("/v1/chat/completions", "/v1/completions")
CONSENT = "x-record-consent"


class Completion(NamedTuple):
    """One choice. ended_by_model: the model ended it, not a stop string, a length or a guide."""

    text: str
    ended_by_model: bool


@dataclass(frozen=True)
class Exchange:
    """The bodies of a request and its response, as they were sent.

    ended_by_model: as in RequestContext.
    """

    id: str
    request: bytes
    response: bytes
    ended_by_model: frozenset[int]

    def request_fields(self) -> dict[str, Any]:
        """The request's JSON; empty if it is not an object, or is nested too deeply to read."""
        try:
            body = json.loads(self.request)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    def completions(self) -> list[Completion]:
        """Every choice's text, whether the response was streamed or not."""
        if not self.response.startswith(b"data:"):
            bodies = [json.loads(self.response)]
        else:
            events = self.response.decode().split("\n\n")
            data = [event.removeprefix("data: ") for event in events]
            bodies = [json.loads(text) for text in data if text.startswith("{")]
        texts: dict[int, list[str]] = {}
        for choice in (c for body in bodies for c in body.get("choices", ())):
            message = choice.get("message") or choice.get("delta") or choice
            parts = texts.setdefault(choice["index"], [])
            parts.append(message.get("content") or message.get("text") or "")
        ended = self.ended_by_model
        return [Completion("".join(parts), i in ended) for i, parts in sorted(texts.items())]


class TranscriptMiddleware:
    """Copies each exchange where it is wanted.

    Args:
        record: called with each exchange that may be recorded; must not block.
        log: whether prompts and completions go into the log.
    """

    def __init__(self, app: ASGIApp, record: Callable[[Exchange], None] | None, log: bool) -> None:
        self._app, self._record, self._log = app, record, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        consents = Headers(scope=scope).get(CONSENT, "").strip().lower() == "yes"
        record = self._record if consents else None
        if not (record or self._log):
            await self._app(scope, receive, send)
            return
        request: list[bytes] = []
        response: list[bytes] = []
        complete = False

        async def receiving() -> Message:
            message = await receive()
            request.append(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.body":
                response.append(message.get("body", b""))
                complete = not message.get("more_body")
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        finally:
            context = request_context.current()
            ended = frozenset(context.ended_by_model)
            exchange = Exchange(context.id, b"".join(request), b"".join(response), ended)
            if self._log and not context.withheld:
                context.content = _content(exchange)
            if record and complete and context.status == 200 and not context.withheld:
                record(exchange)


def _content(exchange: Exchange) -> dict[str, Any]:
    request = exchange.request_fields()
    content: dict[str, Any] = {
        name: request[name] for name in ("messages", "prompt") if name in request
    }
    if exchange.response:
        content["answers"] = [completion.text for completion in exchange.completions()]
    return content
