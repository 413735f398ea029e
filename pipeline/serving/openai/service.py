"""What the endpoints do: a checked request to a prompt, a generation, and a response.

Knows the protocol and the engine; routes, keys and error handlers are app.py's.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from pipeline.engines.base import Engine, EngineFailed, QueueFull, Sampling
from pipeline.models.chat.renderer import Chat
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_log
from pipeline.serving.openai import responses, tools
from pipeline.serving.openai.choices import ChatForm, Form, TextForm
from pipeline.serving.openai.generation import Generation, Piece
from pipeline.serving.openai.logprobs import TokenTexts
from pipeline.serving.openai.models import Models
from pipeline.serving.openai.prompts import Prompts
from pipeline.serving.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    ToolName,
    error_body,
    invalid,
)
from pipeline.serving.openai.sampling_params import Settings

COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


class Service:
    """What the endpoints that answer do."""

    def __init__(
        self, engine: Engine, chat: Chat, metrics: Metrics, models: Models, settings: Settings
    ) -> None:
        self._engine, self._chat, self._metrics = engine, chat, metrics
        self._models, self._settings = models, settings
        self._texts = TokenTexts(chat)
        self._takes_tools = tools.takes_tools(chat)
        self._style = tools.style_of(chat)
        self._marked = self._style is not None and tools.has_control_tokens(chat, self._style)
        self._prompts = Prompts(chat)

    async def answer_chat(self, body: ChatRequest, request: Request) -> Response:
        adapter = self._models.find(body.model)
        field, guide = self._settings.guide(body)
        offered = self._offered(body)
        self._require_slots(1, body.n or 1)
        size = len(await request.body())
        prompt = await self._prompts.of_chat(body.messages, offered, size)
        choice = body.tool_choice
        if self._style and offered and (choice == "required" or isinstance(choice, ToolName)):
            if field:
                raise invalid(field, "a forced call of a tool leaves no room for another form")
            self._settings.require("tool_choice", "guide")
            field, guide = "tool_choice", tools.guide_for(self._chat, self._style, offered)
        sampling = self._settings.sampling(body, body.limit, [len(prompt)], guide, adapter)
        form = ChatForm(
            body.n or 1,
            self._style if offered else None,
            one_call=body.parallel_tool_calls is False,
            named=isinstance(choice, ToolName),
            texts=await self._texts.ready() if body.logprobs else None,
            stop_ids=sampling.stop_ids,
        )
        decode = partial(self._chat.decode, control_tokens=bool(offered) and self._marked)
        return await self._answer(form, body, [prompt], sampling, decode, field, request)

    async def answer_text(self, body: CompletionRequest, request: Request) -> Response:
        adapter = self._models.find(body.model)
        field, guide = self._settings.guide(body)
        self._require_slots(len(body.prompts), body.n or 1)
        prompts = await self._prompts.of_texts(body.prompts, len(await request.body()))
        lengths = [len(prompt) for prompt in prompts]
        limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = self._settings.sampling(body, limit, lengths, guide, adapter)
        n = body.n or 1
        echoes = [""] * len(prompts)
        if body.echo:
            echoes = [p if isinstance(p, str) else self._chat.decode(p) for p in body.prompts]
        form = TextForm(
            [echo for echo in echoes for _ in range(n)],
            [length for length in lengths for _ in range(n)],
            not limit,
            await self._texts.ready() if body.logprobs is not None else None,
        )
        decode = self._chat.decode
        return await self._answer(form, body, prompts, sampling, decode, field, request)

    def _offered(self, body: ChatRequest) -> list[dict[str, Any]] | None:
        """The tools that the model may call, as its template takes them.

        Raises:
            Refusal: it cannot be told of them, or the one to be called is not among them.
        """
        choice = body.tool_choice
        if not body.tools:
            if choice in (None, "none", "auto"):
                return None
            raise invalid("tool_choice", "needs tools to choose from")
        if choice == "none":
            return None
        if not (self._takes_tools and self._style):
            text = (
                "writes calls in a form that this server does not read"
                if self._takes_tools
                else "takes no tools, so the model was not trained to call any"
            )
            raise invalid(
                "tools", f"the chat template of {body.model!r} {text}", "unsupported_parameter"
            )
        offered = [tool.model_dump(exclude_none=True) for tool in body.tools]
        if isinstance(choice, ToolName):
            named = [t for t in offered if t["function"]["name"] == choice.function.name]
            if not named:
                raise invalid("tool_choice", f"{choice.function.name!r} is not among tools")
            return named
        return offered

    async def _answer(
        self,
        form: Form,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        decode: Callable[[Sequence[int]], str],
        guide_field: str | None,
        request: Request,
    ) -> Response:
        async with request_log.current().admitted(sum(map(len, prompts))):
            try:
                run = Generation(
                    *(self._engine, self._metrics, body.model, prompts, body.n or 1, sampling),
                    *(decode, body.stops),
                )
            except ValueError as error:
                raise invalid(guide_field or "model", str(error)) from error
            return await self._respond(form, body, run, sampling, guide_field, request)

    def _require_slots(self, prompts: int, n: int) -> None:
        """
        Raises:
            Refusal: the answers would not fit if nobody else asked for any.
        """
        room = getattr(self._engine, "room", None)
        if room is not None and prompts * n > room:
            raise invalid(
                "n" if prompts == 1 else "prompt",
                f"prompts times n are {prompts * n} answers, and this server holds {room} at once: "
                "send several smaller requests",
            )

    async def _respond(
        self,
        form: Form,
        body: ChatRequest | CompletionRequest,
        run: Generation,
        sampling: Sampling,
        guide_field: str | None,
        request: Request,
    ) -> Response:
        head = {
            "id": f"{'chatcmpl' if form.kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        reason, streams = "error", False  # of what has not ended when this does
        try:
            if body.stream:
                pieces = run.pieces()
                early = []
                if sampling.guide:  # may be refused only now, which has a status of its own
                    early = [await _unless_client_leaves(request, anext(pieces))]
                    if early == [None]:
                        reason = "abort"
                        return Response(status_code=request_log.CLIENT_LEFT)
                streams = True
                events = self._events(form, head, run, early, pieces, body)
                return _EventStream(events, run.cancel)
            whole = await _unless_client_leaves(request, run.collect())
            if whole is None:
                reason = "abort"
                return Response(status_code=request_log.CLIENT_LEFT)
        except ValueError as error:
            raise invalid(guide_field or "body", str(error)) from error
        finally:
            if not streams:
                run.cancel(reason)
        choices = [form.whole(piece) for piece in whole]
        return responses.Json(responses.response(form.kind, head, choices, _usage(body, run)))

    async def _events(
        self,
        form: Form,
        head: dict[str, Any],
        run: Generation,
        early: Sequence[Piece],
        rest: AsyncIterator[Piece],
        body: ChatRequest | CompletionRequest,
    ) -> AsyncIterator[bytes]:
        """The answer as server-sent events: its `early` pieces, then the `rest`."""
        nothing = {"usage": None} if body.wants_usage else {}

        def events(choices: list[dict[str, Any]]) -> bytes:
            return b"".join(
                _event({**responses.chunk(form.kind, head, [choice]), **nothing})
                for choice in choices
            )

        if begun := form.begin():
            yield events(begun)
        try:
            for piece in early:
                yield events(form.go_on(piece))
            async for piece in rest:
                if choices := form.go_on(piece):
                    yield events(choices)
        except (EngineFailed, QueueFull, ValueError) as error:
            run.cancel("error")
            await request_log.current().give_back()
            yield _event(self._late_error(error))
            return
        if body.wants_usage:
            yield _event({**responses.chunk(form.kind, head, []), "usage": _usage(body, run)})
        yield b"data: [DONE]\n\n"

    def _late_error(self, error: Exception) -> dict[str, Any]:
        """What a stream says of a failure that came behind its first byte; notes it, too."""
        call = request_log.current()
        if isinstance(error, QueueFull):
            call.late_status, call.error = 429, f"rate_limit_exceeded: {error}"
            text = "the server has no room for this answer after all: try again shortly"
            return error_body(text, "rate_limit_error", code="rate_limit_exceeded")
        down = isinstance(error, EngineFailed) and self._engine.down()
        call.late_status, call.error = 503 if down else 500, str(error)
        return error_body(str(error), "server_error", code="engine_down" if down else None)


def _usage(body: ChatRequest | CompletionRequest, run: Generation) -> dict[str, int]:
    """Without the token that an engine gives where only the prompt is to be shown."""
    return responses.usage(run.prompt_tokens, 0 if body.max_tokens == 0 else run.completion_tokens)


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + to_json(body) + b"\n\n"


class _EventStream(StreamingResponse):
    """Server-sent events that free what they stand for, however the response ends.

    Args:
        on_end: told why, if it has to be told of an end: `abort`, the client left; or `error`.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[str], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # by serve.request_timeout; of a client that left none comes
            self._on_end("error")
            raise
        finally:
            self._on_end("abort")


async def _unless_client_leaves(request: Request, work: Any) -> Any:
    """The result of `work`, or None as soon as the client has closed the connection."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return None if leaving.done() else working.result()
    finally:
        working.cancel()
        leaving.cancel()
