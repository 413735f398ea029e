"""Authentication by `Authorization: Bearer <key>` below /v1, and the rate limits of each key."""

from datetime import UTC

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.keyring import Keyring
from pipeline.serving.middleware import request_context
from pipeline.serving.middleware.rate_limits import Allowance, RateLimited, RateLimiter
from pipeline.serving.openai import errors

# Orchestrators check health and Prometheus scrapes metrics; neither sends a key. The page asks for
# one, and the description says what the API is.
OPEN_PATHS = frozenset(
    {
        *("/", "/openapi.json", "/version", "/v1/version"),
        *("/metrics", "/v1/metrics", "/health", "/ping", "/load"),
        *("/health/live", "/health/ready", "/v1/health/live", "/v1/health/ready"),
    }
)


class AuthMiddleware:
    """Requires a key, and counts each request against the key's limits."""

    def __init__(
        self, app: ASGIApp, keyring: Keyring, rate_limiter: RateLimiter | None = None
    ) -> None:
        self._app, self._keyring = app, keyring
        self._rate_limiter = rate_limiter or RateLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        # Starlette decodes headers as Latin-1; the key is compared as the bytes that were sent.
        headers = Headers(scope=scope)
        scheme, _, secret = headers.get("authorization", "").encode("latin-1").partition(b" ")
        given = secret.strip() if scheme.lower() == b"bearer" else None
        if given is None and "x-api-key" in headers:  # as Anthropic's clients send it
            given = headers["x-api-key"].encode("latin-1").strip()
        key = self._keyring.find(given)
        if key is None or key.has_expired():
            text = "Incorrect API key provided: send it as `Authorization: Bearer …` or `x-api-key`"
            if key and key.expires:
                ended = key.expires.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
                text = f"The API key '{key.name}' expired at {ended}: ask for a new one"
            body = errors.error_body(text, code="invalid_api_key")
            response = JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
            await response(scope, receive, send)
            return
        context = request_context.current()
        context.key, context.allowance = key, self._rate_limiter.allowance(key)
        send = _with_headers(context.allowance, send)
        try:
            # Requests that do not use the engine, such as the list of models, are not counted.
            if scope["method"] == "POST":
                await context.allowance.count_request()
        except RateLimited as error:
            await rate_limit_response(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            await context.allowance.charge_completion(context.completion_tokens)


def rate_limit_response(error: RateLimited) -> JSONResponse:
    """Status 429 with Retry-After, in OpenAI's error format."""
    body = errors.error_body(str(error), "rate_limit_error", code="rate_limit_exceeded")
    return JSONResponse(body, 429, {"Retry-After": str(error.retry_after)})


def _with_headers(allowance: Allowance, send: Send) -> Send:
    """`send` that adds the x-ratelimit-* headers."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in (await allowance.headers()).items():
                headers[name] = value
        await send(message)

    return sending
