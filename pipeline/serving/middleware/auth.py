"""Who may ask: `Authorization: Bearer <key>` below /v1, and how much each key may ask."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.keys import Keyring
from pipeline.serving.middleware import request_log
from pipeline.serving.middleware.rate_limits import Allowance, RateLimited, Rates
from pipeline.serving.openai import protocol

# Health is asked by orchestrators and metrics by Prometheus, neither of which brings a key.
OPEN_PATHS = ("/v1/health/", "/v1/metrics")


class Door:
    """The layer that asks for a key and counts requests against it."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app, self._keyring, self._rates = app, keyring, Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith("/v1/") or path.startswith(OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        # Headers are bytes that Starlette reads as Latin-1; a key is compared as it was sent.
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        scheme, _, secret = given.partition(b" ")
        key = self._keyring.find(secret.strip() if scheme.lower() == b"bearer" else None)
        if key is None:
            body = protocol.error_body(
                "Incorrect API key provided: send it as `Authorization: Bearer …`",
                code="invalid_api_key",
            )
            response = JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
            await response(scope, receive, send)
            return
        call = request_log.current()
        call.key, call.allowance = key, self._rates.of(key)
        send = _with_headers(call.allowance, send)
        try:
            # What costs the engine nothing, such as the list of models, is not counted.
            if scope["method"] == "POST":
                await call.allowance.take_request()
        except RateLimited as error:
            await too_many(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            await call.allowance.pay_answer(call.completion_tokens)


def too_many(error: RateLimited) -> JSONResponse:
    body = protocol.error_body(str(error), "rate_limit_error", code="rate_limit_exceeded")
    return JSONResponse(body, 429, {"Retry-After": str(error.retry_after)})


def _with_headers(allowance: Allowance, send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in (await allowance.headers()).items():
                headers[name] = value
        await send(message)

    return sending
