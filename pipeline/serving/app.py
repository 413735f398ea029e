"""The ASGI application: OpenAI's endpoints, health and metrics, over an engine that it is given."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from tokenizers import Tokenizer

from pipeline.engines.base import Engine, EngineFailed, QueueFull
from pipeline.models.chat.renderer import Chat
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_log
from pipeline.serving.middleware.auth import too_many
from pipeline.serving.middleware.rate_limits import RateLimited
from pipeline.serving.middleware.request_log import InFlight
from pipeline.serving.middleware.stack import NO_OPERATIONS, Operations
from pipeline.serving.openai import protocol
from pipeline.serving.openai.embedding import Embedder
from pipeline.serving.openai.models import Models
from pipeline.serving.openai.protocol import (
    AdapterRequest,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ErrorResponse,
    Refusal,
    invalid,
)
from pipeline.serving.openai.responses import Json
from pipeline.serving.openai.sampling_params import Settings
from pipeline.serving.openai.service import Service
from pipeline.serving.page import page
from pipeline.serving.readiness import Readiness

RETRY_AFTER_SECONDS = 1
MAX_LOGGED = 200  # characters of an error, as of a path


def create_app(
    engine: Engine,
    chat: Chat | Tokenizer,
    *,
    model: str,
    slots: int,
    runtime: str = "custom",
    defaults: Mapping[str, float] | None = None,
    adapters: Path | None = None,
    operations: Operations = NO_OPERATIONS,
) -> FastAPI:
    """The server's application.

    Args:
        chat: for an engine that embeds the tokenizer, with the special tokens of its texts.
        model: the name that clients call it by. slots: answers that can be in progress at once.
        runtime: the engine's name, for messages.
        defaults: temperature, top_p … for requests that do not say (else OpenAI's: 1, 1 …).
        adapters: folder of LoRA adapters to be served from the start, by their own folders' names.
        operations: keys, limits, logs, records and traces.
    """
    metrics = Metrics(model, engine.load, slots)
    answers, tokenizer = (chat, None) if isinstance(chat, Chat) else (None, chat)
    models = Models(engine, model, runtime, answers)
    readiness = Readiness(engine, answers)
    embedder = Embedder(engine, tokenizer, models, metrics)
    service = None
    if answers:
        settings = Settings(engine, answers, runtime, defaults or {})
        service = Service(engine, answers, metrics, models, settings)

    def answering(name: str) -> Service:
        if service is None:
            models.find(name)
            raise invalid("model", f"the model {name!r} makes embeddings: ask /v1/embeddings")
        return service

    async def begin() -> None:
        try:
            if adapters:
                await models.load_folder(adapters)
        except (ValueError, OSError, EngineFailed) as error:
            readiness.fail(f"serve.adapters={adapters} cannot be served: {error}")
        else:
            await readiness.warm_up()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(begin())
        yield
        readiness.end()
        warming.cancel()
        engine.close()
        await asyncio.to_thread(operations.close)

    app = FastAPI(
        title="pipeline",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    app.state.readiness, app.state.in_flight = readiness, InFlight()

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await answering(body.model).answer_chat(body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answering(body.model).answer_text(body, request)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> dict[str, Any]:
        return await embedder.answer(body)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": models.cards()}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return models.card(name)

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(body: AdapterRequest) -> Response:
        return PlainTextResponse(await models.load_adapter(body))

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(body: AdapterRequest) -> Response:
        return PlainTextResponse(await models.unload_adapter(body))

    # Load balancers ask by HEAD, too.
    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live")
    @app.get("/v1/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.head("/health/ready", include_in_schema=False)
    @app.get("/health/ready")
    @app.get("/v1/health/ready")
    async def ready() -> Response:
        reason = readiness.why_not()
        return Json({"status": reason or "ready"}, 503 if reason else 200)

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
        return _noted(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return _noted(protocol.explain(list(error.errors())), 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        text = f"{error.detail}: {request.method} {request.url.path}"
        if error.status_code == 400:  # FastAPI's, for a body that its parser gave up on
            text = "the body cannot be read: send JSON in UTF-8, not nested thousands deep"
        return Json(protocol.error_body(text), error.status_code, dict(error.headers or {}))

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        text = "the server has as many waiting requests as it may hold: try again shortly"
        body = protocol.error_body(text, "rate_limit_error", code="rate_limit_exceeded")
        return _noted(body, 429, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    @app.exception_handler(RateLimited)
    async def limited(request: Request, error: RateLimited) -> Response:
        return too_many(error)

    @app.exception_handler(EngineFailed)
    async def failed(request: Request, error: EngineFailed) -> Response:
        text = request_log.current().error = str(error)
        if not engine.down():
            return Json(protocol.error_body(text, "server_error"), 500)
        body = protocol.error_body(text, "server_error", code="engine_down")
        return Json(body, 503, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    operations.add_to(app, metrics.failed)
    return app


def _noted(body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Json:
    """A refusal, and in the log its code and field; its message may quote what the client sent."""
    error = body["error"]
    found = " ".join(filter(None, (error["code"], error["param"])))
    request_log.current().error = (
        found[:MAX_LOGGED] or None
    )  # the name of a field can be megabytes long
    return Json(body, status, headers)
