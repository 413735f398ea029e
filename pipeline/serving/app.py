"""The ASGI application: OpenAI's endpoints, health and metrics, over an engine that it is given."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.chat import Chat
from pipeline.serving import protocol
from pipeline.serving.engine import Engine, EngineFailed, QueueFull
from pipeline.serving.metrics import Metrics
from pipeline.serving.protocol import ChatRequest, CompletionRequest
from pipeline.serving.service import Refusal, Service

RETRY_AFTER_SECONDS = 1
OPEN_PATHS = ("/v1/health/",)


def create_app(
    engine: Engine,
    chat: Chat,
    *,
    model: str,
    slots: int,
    defaults: Mapping[str, float] | None = None,
    api_key: str | None = None,
) -> FastAPI:
    """The server's application.

    Args:
        model: the name that clients call it by. slots: answers that can be in progress at once.
        defaults: temperature, top_p and top_k for requests that do not say (else OpenAI's: 1, 1,
            all).
        api_key: asked of every request below /v1 when given.
    """
    metrics = Metrics(model, engine.load, slots)
    service = Service(engine, chat, metrics, model, dict(defaults or {}))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.warm_up())
        yield
        service.ready = False
        warming.cancel()
        engine.close()

    app = FastAPI(title="pipeline", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await service.answer_chat(body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await service.answer_text(body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.require_model(name)
        return service.card

    @app.get("/health/live")
    @app.get("/v1/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready")
    @app.get("/v1/health/ready")
    async def ready() -> Response:
        status = "ready" if service.ready else service.not_ready
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    @app.get("/metrics")
    @app.get("/v1/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def refuse(status: int, body: dict[str, Any], headers: dict[str, str]) -> JSONResponse:
        metrics.failed(status)
        return JSONResponse(body, status, headers)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refuse(error.status, error.body, {})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(400, protocol.explain(list(error.errors())), {})

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        text = f"{error.detail}: {request.method} {request.url.path}"
        return refuse(error.status_code, protocol.error_body(text), dict(error.headers or {}))

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        text = "the server has as many waiting requests as it may hold: try again shortly"
        body = protocol.error_body(text, "rate_limit_error", code="rate_limit_exceeded")
        return refuse(429, body, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    @app.exception_handler(EngineFailed)
    async def failed(request: Request, error: EngineFailed) -> Response:
        return refuse(500, protocol.error_body(str(error), "server_error"), {})

    if api_key:
        app.add_middleware(_RequireKey, key=api_key, refuse=refuse)
    return app


class _RequireKey:
    """Ask for `Authorization: Bearer <key>` below /v1, in the same time for every wrong key."""

    def __init__(
        self,
        app: ASGIApp,
        key: str,
        refuse: Callable[[int, dict[str, Any], dict[str, str]], ASGIApp],
    ) -> None:
        self._app, self._refuse = app, refuse
        self._digest = hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith("/v1/") and not path.startswith(OPEN_PATHS):
            given = dict(scope["headers"]).get(b"authorization", b"")
            digest = hashlib.sha256(given.removeprefix(b"Bearer ")).digest()
            if not hmac.compare_digest(digest, self._digest):
                body = protocol.error_body(
                    "Incorrect API key provided: send it as `Authorization: Bearer …`",
                    code="invalid_api_key",
                )
                response = self._refuse(401, body, {"WWW-Authenticate": "Bearer"})
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
