"""The context of the request that the current code serves.

Each layer adds what it learns: authentication the key, generation the tokens and times. The request
log and the traces read it at the end.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.engines.base import NOBODY, Client

if TYPE_CHECKING:
    from pipeline.serving.keyring import Key
    from pipeline.serving.middleware.rate_limits import Allowance

CLIENT_CLOSED_REQUEST = 499  # nginx's status; no client reads it


@dataclass
class RequestContext:
    """What is known of one request.

    Attributes:
        peer: the client's address and port.
        start_time: by time.perf_counter().
        submitted, scheduled, first_token, last_token: seconds from the start until the request was
            submitted to the engine, left the engine's queue, got its first token, and its last;
            None until then.
        late_status: the status of a failure that came after the response had begun.
        ended_by_model: choices that the model ended, not a stop string, a length or a guide.
        guardrails: what rails blocked, changed, answered or failed to check.
        documents: documents whose passages the model was given.
        withheld: whether a rail blocked or changed a text, which must not be copied elsewhere.
        content: fields that serve.log_content adds to the log line.
    """

    id: str
    peer: tuple[str, int] | None = None
    start_time: float = field(default_factory=time.perf_counter)
    key: "Key | None" = None
    allowance: "Allowance | None" = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    submitted: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    ended_by_model: set[int] = field(default_factory=set)
    status: int | None = None
    late_status: int | None = None
    error: str | None = None
    ended: bool = False
    guardrails: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    withheld: bool = False
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self.start_time

    @property
    def server_failed(self) -> bool:
        """Whether the server failed: with a 5xx status, or later in its stream."""
        return self.error is not None and (self.late_status or self.status or 500) >= 500

    @property
    def client(self) -> Client:
        """Who asks, for the engine's queue: the API key, else the address."""
        if self.peer is None:
            return NOBODY
        host, port = self.peer
        connection = f"{host}:{port}"
        return self.key.client(connection) if self.key else Client(host, connection)

    def may_use(self, model: str) -> bool:
        return self.key is None or self.key.allows(model)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the documents that the request may see beside those that everybody may."""
        return self.key.documents if self.key else ()

    @property
    def is_admin(self) -> bool:
        """Whether the request may load and unload adapters; without keys, every request may."""
        return self.key is None or self.key.admin

    @asynccontextmanager
    async def charged(self, prompt_tokens: int) -> AsyncIterator[None]:
        """Charge a prompt's tokens to the key, and refund them if the block fails.

        Raises:
            RateLimited: the key has fewer tokens left in this minute.
        """
        if self.allowance:
            await self.allowance.charge_prompt(prompt_tokens)
        try:
            yield
        except Exception:
            await self.refund()
            raise

    async def refund(self) -> None:
        """Refund the prompt's tokens of a request that failed before its first token."""
        if self.allowance and not self.completion_tokens:
            await self.allowance.refund_prompt()


_current: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def current() -> RequestContext:
    """The context of the current request; a new one outside a request, as in the warm-up."""
    return _current.get() or RequestContext("none")


def enter(context: RequestContext) -> Token[RequestContext | None]:
    """Make it the current one until `leave`."""
    return _current.set(context)


def leave(token: Token[RequestContext | None]) -> None:
    _current.reset(token)
