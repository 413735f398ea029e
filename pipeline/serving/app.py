"""The ASGI application: OpenAI's endpoints, health and metrics, over an engine that it is given."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from pipeline.chat import Chat
from pipeline.serving import calls, protocol
from pipeline.serving.calls import InFlight
from pipeline.serving.door import too_many
from pipeline.serving.engine import Engine, EngineFailed, QueueFull
from pipeline.serving.metrics import Metrics
from pipeline.serving.operations import NO_OPERATIONS, Operations
from pipeline.serving.page import page
from pipeline.serving.protocol import ChatRequest, CompletionRequest
from pipeline.serving.rates import RateLimited
from pipeline.serving.service import Refusal, Service

RETRY_AFTER_SECONDS = 1


def create_app(
    engine: Engine,
    chat: Chat,
    *,
    model: str,
    slots: int,
    defaults: Mapping[str, float] | None = None,
    operations: Operations = NO_OPERATIONS,
) -> FastAPI:
    """The server's application.

    Args:
        model: the name that clients call it by. slots: answers that can be in progress at once.
        defaults: temperature, top_p and top_k for requests that do not say (else OpenAI's: 1, 1,
            all).
        operations: keys, limits, logs, records and traces.
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
        await asyncio.to_thread(operations.close)

    app = FastAPI(title="pipeline", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.in_flight = service, InFlight()

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await service.answer_chat(body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await service.answer_text(body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        may_use = calls.current().may_use
        return {"object": "list", "data": [c for c in [service.card] if may_use(c["id"])]}

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
        reason = engine.down() if service.ready else service.not_ready
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    chat_page = page(records=operations.recorder is not None)

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return chat_page

    @app.get("/metrics")
    @app.get("/v1/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse(protocol.explain(list(error.errors())), 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        text = f"{error.detail}: {request.method} {request.url.path}"
        return JSONResponse(protocol.error_body(text), error.status_code, dict(error.headers or {}))

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        text = "the server has as many waiting requests as it may hold: try again shortly"
        body = protocol.error_body(text, "rate_limit_error", code="rate_limit_exceeded")
        return JSONResponse(body, 429, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    @app.exception_handler(RateLimited)
    async def limited(request: Request, error: RateLimited) -> Response:
        return too_many(error)

    @app.exception_handler(EngineFailed)
    async def failed(request: Request, error: EngineFailed) -> Response:
        return JSONResponse(protocol.error_body(str(error), "server_error"), 500)

    operations.add_to(app, metrics.failed)
    return app
