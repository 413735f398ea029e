"""One request from first byte to last: its id, what is known of it, and its line in the log.

The outermost layer of the server. Whoever learns something of a request on its way writes it into
`current()`: the door whose key it was, the generation its tokens and times.
"""

import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.openai import protocol

if TYPE_CHECKING:
    from pipeline.serving.keys import Key
    from pipeline.serving.middleware.rate_limits import Allowance

log = logging.getLogger("pipeline.serving")

CLIENT_LEFT = 499  # nginx's; nobody reads it
DRAIN_RETRY_SECONDS = 5  # by then a load balancer has seen that this server is not ready
QUIET = ("/health", "/v1/health", "/metrics", "/v1/metrics")  # asked every few seconds, by machines
_ID = re.compile(r"[\w.:/+=@-]{1,128}")


@dataclass
class Call:
    """What is known of a request. Times are seconds since it began, None until they happen:
    the engine was asked, it left the engine's queue, its first token came, and its last.

    late_status: what a failure that came after the response had begun would have had.
    ended_by_themselves: choices that the model ended, and no stop string, length or guide.
    content: what serve.log_content adds to the line.
    """

    id: str
    begun: float = field(default_factory=time.perf_counter)
    key: "Key | None" = None
    allowance: "Allowance | None" = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    asked: float | None = None
    queued: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    ended_by_themselves: set[int] = field(default_factory=set)
    status: int | None = None
    late_status: int | None = None
    error: str | None = None
    ended: bool = False
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    @property
    def was_cut(self) -> bool:
        """Whether the server failed at it: with a status that says so, or in its stream."""
        return self.error is not None and (self.late_status or self.status or 500) >= 500

    def may_use(self, model: str) -> bool:
        return self.key is None or self.key.allows(model)

    @property
    def may_administer(self) -> bool:
        """Whether it may change what the server serves; on a server without keys anyone may."""
        return self.key is None or self.key.admin

    @asynccontextmanager
    async def admitted(self, prompt_tokens: int) -> AsyncIterator[None]:
        """Take a prompt's tokens from what the key may ask in this minute, for what is done inside.

        Raises:
            RateLimited: fewer are left.
        """
        if self.allowance:
            await self.allowance.take_prompt(prompt_tokens)
        try:
            yield
        except Exception:
            await self.give_back()
            raise

    async def give_back(self) -> None:
        """Of a request that was refused or failed, its prompt's tokens, unless tokens have come."""
        if self.allowance and not self.completion_tokens:
            await self.allowance.give_back_prompt()


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call:
    """The request that this code works for; outside of one, such as in the warm-up, a new Call."""
    return _current.get() or Call("none")


class InFlight:
    """How many requests are being answered, and whether more may come.

    cut: how many the server could not finish, by its own fault, since it was told to stop.
    """

    def __init__(self) -> None:
        self.count = 0
        self.draining = False
        self.cut = 0


class Calls:
    """The layer. Counts refusals and failures; what nothing below it foresaw is a 500.

    Args:
        failed: told the status of each refusal or failure.
        ended: told of each call that has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        in_flight: InFlight,
        failed: Callable[[int], None],
        ended: Callable[[Call], None] | None = None,
    ) -> None:
        self._app, self._in_flight, self._failed, self._ended = app, in_flight, failed, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(_given_id(scope) or f"req-{uuid.uuid4().hex}")
        token = _current.set(call)
        quiet = scope["path"].startswith(QUIET)
        self._in_flight.count += not quiet
        try:
            await self._answer(call, scope, receive, self._tagged(call, send, quiet))
        finally:
            if call.late_status:
                self._failed(call.late_status)
            self._in_flight.count -= not quiet
            self._in_flight.cut += call.was_cut
            _current.reset(token)
            if not quiet:
                _write(call, scope)
                self._end(call)

    async def _answer(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        if self._in_flight.draining and scope["method"] == "POST":
            text = "the server is shutting down: ask another, or again shortly"
            headers = {"Retry-After": str(DRAIN_RETRY_SECONDS), "Connection": "close"}
            body = protocol.error_body(text, "server_error", code="shutting_down")
            await JSONResponse(body, 503, headers)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            log.exception("unforeseen failure", extra={"request_id": call.id})
            call.error = f"{type(error).__name__}: {error}"
            if call.status is not None:
                call.late_status = 500
            else:
                text = f"the server failed at this request; its log has more under {call.id}"
                body = protocol.error_body(text, "server_error", code="internal_error")
                await JSONResponse(body, 500)(scope, receive, send)

    def _tagged(self, call: Call, send: Send, quiet: bool) -> Callable[[Message], Awaitable[None]]:
        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = call.id
                # A probe that hears 503 is no request that failed.
                if call.status >= 400 and call.status != CLIENT_LEFT and not quiet:
                    self._failed(call.status)
            elif not message.get("more_body"):
                self._end(call)
            await send(message)

        return tagged

    def _end(self, call: Call) -> None:
        """Tell of the end, once: before the last byte, with which a trace's span ends too."""
        if self._ended and not call.ended:
            call.ended = True
            self._ended(call)


def _given_id(scope: Scope) -> str | None:
    """The client's own X-Request-Id, if it can stand in a header and a log as it is."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _ID.fullmatch(text) else None
    return None


def _write(call: Call, scope: Scope) -> None:
    """The request's line. Never a header or a query string, which may hold a key."""
    fields: dict[str, Any] = {
        "request_id": call.id,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": call.status,
        "seconds": round(call.seconds, 4),
        "client": scope["client"][0] if scope.get("client") else None,
        "key": call.key.name if call.key else None,
        "model": call.model,
        "error": call.error,
        **call.content,
    }
    if call.prompt_tokens:
        fields |= {
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
            "queued_seconds": _rounded(call.queued),
            "first_token_seconds": _rounded(call.first_token),
            "finish_reasons": call.finish_reasons,
        }
    log.info("request", extra={name: v for name, v in fields.items() if v is not None})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
