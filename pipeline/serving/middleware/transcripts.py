"""What was asked and answered, for the log (serve.log_content) and for training (serve.record).

Nothing is copied unless one of them wants it. An answer is recorded only where the request brought
`X-Record-Consent: yes`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.middleware import request_log

PATHS = ("/v1/chat/completions", "/v1/completions")
CONSENT = "x-record-consent"


class Answer(NamedTuple):
    """by_itself: whether the model ended it, and no stop string, length or guide."""

    text: str
    by_itself: bool


@dataclass(frozen=True)
class Exchange:
    """A request's body and its response's, as they were on the wire.

    ended_by_themselves: see calls.Call.
    """

    id: str
    request: bytes
    response: bytes
    ended_by_themselves: frozenset[int]

    def asked(self) -> dict[str, Any]:
        """The request; empty if it was none, or one that is nested thousands deep."""
        try:
            body = json.loads(self.request)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    def answers(self) -> list[Answer]:
        """What every choice says, streamed or not."""
        if not self.response.startswith(b"data:"):
            bodies = [json.loads(self.response)]
        else:
            events = self.response.decode().split("\n\n")
            data = [event.removeprefix("data: ") for event in events]
            bodies = [json.loads(text) for text in data if text.startswith("{")]
        texts: dict[int, list[str]] = {}
        for choice in (c for body in bodies for c in body.get("choices", ())):
            said = choice.get("message") or choice.get("delta") or choice
            parts = texts.setdefault(choice["index"], [])
            parts.append(said.get("content") or said.get("text") or "")
        ended = self.ended_by_themselves
        return [Answer("".join(parts), i in ended) for i, parts in sorted(texts.items())]


class Transcripts:
    """The layer.

    Args:
        record: given each exchange that may be recorded; must not wait.
        log: whether prompts and answers go into the log.
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
        asked: list[bytes] = []
        answered: list[bytes] = []
        whole = False

        async def receiving() -> Message:
            message = await receive()
            asked.append(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            nonlocal whole
            if message["type"] == "http.response.body":
                answered.append(message.get("body", b""))
                whole = not message.get("more_body")
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        finally:
            call = request_log.current()
            ended = frozenset(call.ended_by_themselves)
            exchange = Exchange(call.id, b"".join(asked), b"".join(answered), ended)
            if self._log:
                call.content = _content(exchange)
            if record and whole and call.status == 200:
                record(exchange)


def _content(exchange: Exchange) -> dict[str, Any]:
    asked = exchange.asked()
    content: dict[str, Any] = {
        name: asked[name] for name in ("messages", "prompt") if name in asked
    }
    if exchange.response:
        content["answers"] = [answer.text for answer in exchange.answers()]
    return content
