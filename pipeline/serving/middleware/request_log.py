"""The outermost layer: gives each request an id and a context, counts it, and logs one line."""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.middleware import request_context
from pipeline.serving.middleware.request_context import CLIENT_CLOSED_REQUEST, RequestContext
from pipeline.serving.openai import errors

log = logging.getLogger("pipeline.serving")

DRAIN_RETRY_SECONDS = 5  # by then a load balancer has seen that this server is not ready
# Probes and scrapes, which come every few seconds.
UNLOGGED_PATHS = ("/health", "/v1/health", "/metrics", "/v1/metrics")
_ID = re.compile(r"[\w.:/+=@-]{1,128}")


class InFlight:
    """The requests in progress.

    Attributes:
        count: how many there are.
        draining: whether new ones are refused, because the server shuts down.
        failed: how many the server failed to finish since it began to shut down.
    """

    def __init__(self) -> None:
        self.count = 0
        self.draining = False
        self.failed = 0


class RequestLogMiddleware:
    """Counts refusals and failures, and turns an unexpected exception into status 500.

    Args:
        failed: called with the status of each refusal or failure.
        ended: called with the context of each request that has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        in_flight: InFlight,
        failed: Callable[[int], None],
        ended: Callable[[RequestContext], None] | None = None,
    ) -> None:
        self._app, self._in_flight, self._failed, self._ended = app, in_flight, failed, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = _client_id(scope) or f"req-{uuid.uuid4().hex}"
        context = RequestContext(identity, scope.get("client"))
        token = request_context.enter(context)
        logged = not scope["path"].startswith(UNLOGGED_PATHS)
        self._in_flight.count += logged
        try:
            await self._respond(context, scope, receive, self._observed(context, send, logged))
        finally:
            if context.late_status:
                self._failed(context.late_status)
            self._in_flight.count -= logged
            self._in_flight.failed += context.server_failed
            request_context.leave(token)
            if logged:
                _write(context, scope)
                self._end(context)

    async def _respond(
        self, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if self._in_flight.draining and scope["method"] == "POST":
            text = "the server is shutting down: send the request to another, or try again shortly"
            headers = {"Retry-After": str(DRAIN_RETRY_SECONDS), "Connection": "close"}
            body = errors.error_body(text, "server_error", code="shutting_down")
            await JSONResponse(body, 503, headers)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            log.exception("unexpected error", extra={"request_id": context.id})
            context.error = f"{type(error).__name__}: {error}"
            if context.status is not None:
                context.late_status = 500
            else:
                text = f"internal server error: the server's log has the details of {context.id}"
                body = errors.error_body(text, "server_error", code="internal_error")
                await JSONResponse(body, 500)(scope, receive, send)

    def _observed(
        self, context: RequestContext, send: Send, logged: bool
    ) -> Callable[[Message], Awaitable[None]]:
        """`send` that adds X-Request-Id, and notes the status and the end of the response."""

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = context.id
                # A health check that gets 503 is not a failed request.
                if context.status >= 400 and context.status != CLIENT_CLOSED_REQUEST and logged:
                    self._failed(context.status)
            elif not message.get("more_body"):
                self._end(context)
            await send(message)

        return observed

    def _end(self, context: RequestContext) -> None:
        """Report the end once: before the last byte, because the trace's span ends with that."""
        if self._ended and not context.ended:
            context.ended = True
            self._ended(context)


def _client_id(scope: Scope) -> str | None:
    """The client's own X-Request-Id, if it is safe in a header and in the log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _ID.fullmatch(text) else None
    return None


def _write(context: RequestContext, scope: Scope) -> None:
    """Log the request. Leaves out headers and the query string, which may hold a key."""
    fields: dict[str, Any] = {
        "request_id": context.id,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": context.status,
        "seconds": round(context.seconds, 4),
        "client": scope["client"][0] if scope.get("client") else None,
        "key": context.key.name if context.key else None,
        "model": context.model,
        "error": context.error,
        "guardrails": context.guardrails or None,
        "documents": context.documents or None,
        **context.content,
    }
    if context.prompt_tokens:
        fields |= {
            "prompt_tokens": context.prompt_tokens,
            "completion_tokens": context.completion_tokens,
            "queued_seconds": _rounded(context.scheduled),
            "first_token_seconds": _rounded(context.first_token),
            "finish_reasons": context.finish_reasons,
        }
    log.info("request", extra={name: v for name, v in fields.items() if v is not None})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
