"""The ASGI application: OpenAI's endpoints, health and metrics, on top of an engine."""

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
from pipeline.serving.anthropic.errors import MessagesErrors
from pipeline.serving.anthropic.service import add_messages
from pipeline.serving.feedback import add_feedback
from pipeline.serving.guardrails.guard import Guardrails
from pipeline.serving.guardrails.service import GuardedService
from pipeline.serving.metrics import Collectors, Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.middleware.auth import rate_limit_response
from pipeline.serving.middleware.rate_limits import RateLimited
from pipeline.serving.middleware.request_log import InFlight
from pipeline.serving.middleware.stack import NO_MIDDLEWARE, MiddlewareStack
from pipeline.serving.openai import errors
from pipeline.serving.openai.bodies import BodyRefused, bounded_route
from pipeline.serving.openai.completions import CompletionService
from pipeline.serving.openai.embeddings import Embedder
from pipeline.serving.openai.errors import ApiError, ErrorResponse
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.protocol import (
    AdapterRequest,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from pipeline.serving.openai.responses import Json
from pipeline.serving.openai.sampling_params import SamplingParamsBuilder
from pipeline.serving.page import page
from pipeline.serving.parsers.detection import answer_format
from pipeline.serving.rag.collections import Collections
from pipeline.serving.rag.service import RagService
from pipeline.serving.readiness import Readiness
from pipeline.serving.responses.service import add_responses
from pipeline.serving.routes.health import add_health
from pipeline.serving.routes.server_info import add_server_info
from pipeline.serving.routes.tokenization import add_tokenization
from pipeline.serving.scoring.service import Scorer, add_scoring
from pipeline.serving.tasks import SCORING, missing_route, task_of
from pipeline.serving.versions import ServedVersion, VersionMiddleware

RETRY_AFTER_SECONDS = 1
MAX_LOGGED = 200  # characters of an error or a path


def create_app(
    engine: Engine,
    chat: Chat | Tokenizer,
    *,
    model: str,
    slots: int,
    runtime: str = "custom",
    profile: str | None = None,
    defaults: Mapping[str, float] | None = None,
    adapters: Path | None = None,
    adapters_seconds: float | None = None,
    json_whitespace: int = 0,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    response_store: int = 0,
    middleware: MiddlewareStack = NO_MIDDLEWARE,
    version: ServedVersion | None = None,
    in_flight: InFlight | None = None,
    collectors: Collectors | None = None,
    guardrails: Guardrails | None = None,
    collections: Collections | None = None,
    activation: str = "Sigmoid",
) -> FastAPI:
    """The server's application.

    Args:
        chat: the model's renderer; for an engine that generates no text, a tokenizer that adds
            special tokens.
        model: the model's name in requests.
        slots: number of sequences that the engine can generate at a time.
        runtime: the engine's name, for messages. profile: the name of its profile.
        defaults: temperature, top_p … for requests without them; else OpenAI's: 1, 1 …
        json_whitespace: characters of white space that guided JSON may have at each gap.
        response_store: responses of /v1/responses that are kept at most.
        tool_parser, reasoning_parser: as answer_format has them.
        adapters: folder of LoRA adapters to load at the start, each named as its own folder.
        adapters_seconds: from one look at it to the next; None: it is read once.
        middleware: authentication, limits, recording and traces.
        version: the registered version that is served.
        in_flight, collectors: of a server whose versions follow one another.
        guardrails: rails before and behind the model, if it generates text.
        collections: documents that answers are found in, if it generates text.
        activation: what turns a logit into a score, of a model that scores texts.

    Raises:
        ConfigError: a parser's name is unknown.
    """
    number = str(version.number) if version else None
    metrics = Metrics(model, engine.load, slots, version=number, collectors=collectors)
    renderer, tokenizer = (chat, None) if isinstance(chat, Chat) else (None, chat)
    models = ServedModels(engine, model, runtime, renderer, version)
    readiness = Readiness(engine, renderer)
    task = task_of(engine, generates=renderer is not None)
    completion_service = None
    if renderer:
        sampling_params = SamplingParamsBuilder(
            engine, renderer, runtime, defaults or {}, json_whitespace
        )
        unguarded = CompletionService(
            *(engine, renderer, metrics, models, sampling_params),
            answer_format(renderer, tool_parser, reasoning_parser),
        )
        with_documents = RagService(*(unguarded, collections, engine, renderer, metrics, models))
        completion_service = GuardedService(with_documents, guardrails, renderer, models)
        if guardrails:
            guardrails.bind(engine, renderer, metrics)

    async def begin() -> None:
        try:
            if adapters:
                await models.load_folder(adapters)
        except (ValueError, OSError, EngineFailed) as error:
            readiness.fail(f"serve.adapters={adapters} cannot be loaded: {error}")
        else:
            await readiness.warm_up()
        while adapters and adapters_seconds:
            await asyncio.sleep(adapters_seconds)
            await models.refresh_folder(adapters)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(begin())
        yield
        readiness.end()
        warming.cancel()
        engine.close()
        if completion_service:
            completion_service.close()
        metrics.close()

    app = FastAPI(
        title="pipeline",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    app.router.route_class = bounded_route(engine.max_input_len)
    app.state.readiness, app.state.in_flight = readiness, in_flight or InFlight()

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

    if tokenizer and task is SCORING:
        add_scoring(app, Scorer(engine, tokenizer, models, metrics, activation))
    elif tokenizer:
        add_embeddings(app, Embedder(engine, tokenizer, models, metrics))
    if completion_service and renderer:
        add_completions(app, completion_service)
        if not guardrails:  # their answers have other forms, which rails do not check
            add_messages(app, unguarded, models)
            add_responses(app, unguarded, renderer, models, response_store)
        add_tokenization(app, unguarded, renderer, models, engine.max_seq_len)
    add_health(app, readiness, engine, metrics)
    folder = renderer.folder if renderer else None
    add_server_info(
        app, model=model, folder=folder, runtime=runtime, profile=profile, version=version
    )

    if middleware.feedback:
        add_feedback(app, middleware.feedback, models, metrics)
    chat_page = page(
        records=middleware.recorder is not None, feedback=middleware.feedback is not None
    )

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return chat_page

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return _logged_error(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return _logged_error(errors.explain(list(error.errors())), 400)

    @app.exception_handler(BodyRefused)
    async def too_many(request: Request, error: BodyRefused) -> Response:
        return _logged_error(errors.error_body(error.detail, code="request_too_large"), 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        text = missing_route(path, model, task) if error.status_code == 404 else None
        text = text or f"{error.detail}: {request.method} {path}"
        if error.status_code == 400:  # FastAPI could not parse the body
            text = "the body cannot be parsed: send JSON in UTF-8 that is not deeply nested"
        return Json(errors.error_body(text), error.status_code, dict(error.headers or {}))

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        text = "the server's queue is full (serve.max_queue): try again shortly"
        body = errors.error_body(text, "rate_limit_error", code="rate_limit_exceeded")
        return _logged_error(body, 429, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    @app.exception_handler(RateLimited)
    async def limited(request: Request, error: RateLimited) -> Response:
        return rate_limit_response(error)

    @app.exception_handler(EngineFailed)
    async def failed(request: Request, error: EngineFailed) -> Response:
        text = request_context.current().error = str(error)
        if not engine.down():
            return Json(errors.error_body(text, "server_error"), 500)
        body = errors.error_body(text, "server_error", code="engine_down")
        return Json(body, 503, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    if version:  # inside, for answers that are kept
        app.add_middleware(VersionMiddleware, version=version)
    middleware.add_to(app, metrics.failed)
    app.add_middleware(MessagesErrors)
    if version:  # outside, for refusals
        app.add_middleware(VersionMiddleware, version=version)
    return app


def add_completions(app: FastAPI, service: GuardedService) -> None:
    """Add the routes that generate text in OpenAI's form."""

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await service.chat_completion(body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await service.completion(body, request)


def add_embeddings(app: FastAPI, embedder: Embedder) -> None:
    """Add the route of a model that makes embeddings."""

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> dict[str, Any]:
        return await embedder.embed(body)


def _logged_error(
    body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None
) -> Json:
    """An error response. Its code and field are logged; its message may quote the client."""
    error = body["error"]
    logged = " ".join(filter(None, (error["code"], error["param"])))
    # A client's field name can be megabytes long.
    request_context.current().error = logged[:MAX_LOGGED] or None
    return Json(body, status, headers)
