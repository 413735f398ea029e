"""Idempotency keys: a request that is sent again gets the answer of the first one.

A POST with the header `Idempotency-Key` is answered once. Sent again with the same key and body, it
gets a copy of that answer with `Idempotent-Replayed: true`, and costs the engine nothing. While the
first is in progress, the second gets 409; with another body or path it gets 422. Refusals and
failures that may pass (408, 409, 429, 499, 5xx) are not kept, nor is an answer whose client left.
Keys of different API keys, or addresses without API keys, are different keys.
"""

import hashlib
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.middleware import request_context
from pipeline.serving.openai import errors

HEADER = "idempotency-key"
REPLAYED = b"idempotent-replayed"
MOST_BYTES = 64 * 2**20  # of all answers that are kept; the oldest make room
PASSING = frozenset({408, 409, 425, 429, 499})
_FORM = re.compile(r"[\x21-\x7e]{1,255}")
# What belongs to one response, not to the answer.
_OWN_HEADERS = frozenset({b"date", b"connection", b"x-request-id", REPLAYED})


@dataclass
class _Answer:
    """digest: of the request. end: by time.monotonic(), when it is forgotten; None: in progress."""

    digest: bytes
    end: float | None = None
    start: Message = field(default_factory=dict)
    body: bytes = b""


class KeptAnswers:
    """The answers of one server. seconds: how long each is kept."""

    def __init__(self, seconds: float, most_bytes: int = MOST_BYTES) -> None:
        self._seconds, self._most_bytes = seconds, most_bytes
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()
        self._bytes = 0

    def begin(self, place: tuple[str, str], digest: bytes) -> _Answer | None:
        """The answer that is kept or in progress; None if this request is the first."""
        self._forget()
        found = self._answers.get(place)
        if found is None:
            self._answers[place] = _Answer(digest)
        return found

    def keep(self, place: tuple[str, str], start: Message, body: bytes) -> None:
        answer = self._answers.pop(place)
        if len(body) > self._most_bytes:
            return
        answer.start, answer.body = start, body
        answer.end = time.monotonic() + self._seconds
        self._answers[place] = answer  # behind the older ones
        self._bytes += len(body)
        self._forget()

    def drop(self, place: tuple[str, str]) -> None:
        """Forget a request that has no answer to keep."""
        self._answers.pop(place, None)

    def _forget(self) -> None:
        """Forget what is too old, and the oldest if all are too large."""
        now = time.monotonic()
        for place, answer in list(self._answers.items()):
            if answer.end is None:
                continue  # in progress
            if answer.end > now and self._bytes <= self._most_bytes:
                break
            del self._answers[place]
            self._bytes -= len(answer.body)


class IdempotencyMiddleware:
    """Behind authentication, and before the application."""

    def __init__(self, app: ASGIApp, answers: KeptAnswers) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get(HEADER) if scope["type"] == "http" else None
        if given is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if not _FORM.fullmatch(given):
            text = "Idempotency-Key must have 1 to 255 visible ASCII characters"
            await _refusal(400, text, "invalid_idempotency_key")(scope, receive, send)
            return
        messages, digest = await _read(scope, receive)
        if messages[-1]["type"] == "http.disconnect":
            return
        place = request_context.current().client.name, given
        found = self._answers.begin(place, digest)
        if found is None:
            await self._answer(place, scope, _replayed(messages, receive), send)
        elif found.digest != digest:
            text = "this Idempotency-Key was used for another request: take a new one"
            await _refusal(422, text, "idempotency_key_reused")(scope, receive, send)
        elif found.end is None:
            text = "the first request with this Idempotency-Key is in progress: try again shortly"
            refusal = _refusal(409, text, "idempotency_key_in_use")
            refusal.headers["Retry-After"] = "1"
            await refusal(scope, receive, send)
        else:
            headers = [*found.start["headers"], (REPLAYED, b"true")]
            await send({**found.start, "headers": headers})
            await send({"type": "http.response.body", "body": found.body})

    async def _answer(
        self, place: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        start: Message = {}
        parts: list[bytes] = []
        whole = False

        async def sending(message: Message) -> None:
            nonlocal start, whole
            if message["type"] == "http.response.start":
                own = [pair for pair in message["headers"] if pair[0].lower() not in _OWN_HEADERS]
                start = {**message, "headers": own}
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            context = request_context.current()
            failed = context.late_status or context.server_failed
            status = start.get("status", 500)
            if whole and not failed and status < 500 and status not in PASSING:
                self._answers.keep(place, start, b"".join(parts))
            else:
                self._answers.drop(place)


async def _read(scope: Scope, receive: Receive) -> tuple[list[Message], bytes]:
    """The messages of the body, and a digest of what is asked."""
    asked = hashlib.sha256(f"{scope['path']}\n".encode())
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        asked.update(messages[-1].get("body", b""))
    return messages, asked.digest()


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    left = iter(messages)

    async def replayed() -> Message:
        return next(left, None) or await receive()

    return replayed


def _refusal(status: int, text: str, code: str) -> JSONResponse:
    return JSONResponse(errors.error_body(text, code=code), status)
