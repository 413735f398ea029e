"""POST /v1/chat/completions and /v1/completions: a request becomes a prompt, then a response.

Knows the protocol and the engine. Routes and error handlers are in app.py, keys in middleware/.
"""

import asyncio
import dataclasses
import logging
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
from pipeline.serving.guides.checker import GuideChecker
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.openai import responses, tools
from pipeline.serving.openai.choices import ChatFormatter, ChoiceFormatter, CompletionFormatter
from pipeline.serving.openai.detokenizer import Detokenizer
from pipeline.serving.openai.generation import Delta, Generation
from pipeline.serving.openai.logprobs import TokenTexts
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.prompts import PromptRenderer
from pipeline.serving.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    ToolName,
    error_body,
    invalid,
    shortened,
)
from pipeline.serving.openai.sampling_params import SamplingParamsBuilder, require_short

log = logging.getLogger("pipeline.serving")

COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


class CompletionService:
    """The endpoints that generate text."""

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        metrics: Metrics,
        models: ServedModels,
        sampling_params: SamplingParamsBuilder,
    ) -> None:
        self._engine, self._chat, self._metrics = engine, chat, metrics
        self._models, self._sampling_params = models, sampling_params
        self._texts = TokenTexts(chat)
        self._accepts_tools = tools.accepts_tools(chat)
        self._tool_format = tool_format = tools.tool_call_format(chat)
        # Where a call begins with control tokens, the parser must see them.
        self._show_control_tokens = bool(
            tool_format and tools.has_control_tokens(chat, tool_format)
        )
        self._prompts = PromptRenderer(chat, engine)
        self._guides = None
        if "guide" in engine.features:
            self._guides = GuideChecker(chat.tokenizer.to_str(), chat.stop_ids)

    def close(self) -> None:
        if self._guides:
            self._guides.close()

    async def chat_completion(self, body: ChatRequest, request: Request) -> Response:
        adapter = self._models.find(body.model)
        field, guide = self._sampling_params.guide(body)
        callable_tools = self._callable_tools(body)
        self._require_slots(1, body.n or 1)
        size = len(await request.body())
        prompt = await self._prompts.chat(body.messages, callable_tools, size)
        choice = body.tool_choice
        is_forced = choice == "required" or isinstance(choice, ToolName)
        if self._tool_format and callable_tools and is_forced:
            if field:
                raise invalid(field, "cannot be combined with a tool_choice that forces a call")
            self._sampling_params.require("tool_choice", "guide")
            guide = tools.guide_for(
                *(self._chat, self._tool_format, callable_tools),
                self._sampling_params.json_whitespace,
            )
            field = "tools"
        sampling = self._sampling_params.build(body, body.limit, [len(prompt)], guide, adapter)
        formatter = ChatFormatter(
            body.n or 1,
            self._tool_format if callable_tools else None,
            one_call=body.parallel_tool_calls is False,
            named=isinstance(choice, ToolName),
            texts=await self._texts.ready() if body.logprobs else None,
            stop_ids=sampling.stop_ids,
        )
        new_detokenizer = partial(
            Detokenizer,
            *(self._chat.tokenizer, body.stops),
            control_tokens=bool(callable_tools) and self._show_control_tokens,
        )
        return await self._generate(
            formatter, body, [prompt], sampling, new_detokenizer, field, request
        )

    async def completion(self, body: CompletionRequest, request: Request) -> Response:
        adapter = self._models.find(body.model)
        field, guide = self._sampling_params.guide(body)
        self._require_slots(len(body.prompts), body.n or 1)
        prompts = await self._prompts.completions(body.prompts, len(await request.body()))
        lengths = [len(prompt) for prompt in prompts]
        limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = self._sampling_params.build(body, limit, lengths, guide, adapter)
        n = body.n or 1
        echoes = [""] * len(prompts)
        if body.echo:
            echoes = [p if isinstance(p, str) else self._chat.decode(p) for p in body.prompts]
        formatter = CompletionFormatter(
            [echo for echo in echoes for _ in range(n)],
            [length for length in lengths for _ in range(n)],
            not limit,
            await self._texts.ready() if body.logprobs is not None else None,
        )
        new_detokenizer = partial(Detokenizer, self._chat.tokenizer, body.stops)
        return await self._generate(
            formatter, body, prompts, sampling, new_detokenizer, field, request
        )

    def _callable_tools(self, body: ChatRequest) -> list[dict[str, Any]] | None:
        """The tools that the model may call, in the form that chat templates expect.

        Raises:
            ApiError: the model's template does not support tools, or the tool to call is not among
                them.
        """
        choice = body.tool_choice
        require_short("tools", [tool.function.parameters for tool in body.tools or ()])
        if not body.tools:
            if choice in (None, "none", "auto"):
                return None
            raise invalid("tool_choice", "needs tools: send at least one")
        if choice == "none":
            return None
        if not (self._accepts_tools and self._tool_format):
            text = (
                "writes tool calls in a format that this server cannot parse"
                if self._accepts_tools
                else "does not support tools, so the model was not trained to call any"
            )
            raise invalid(
                "tools",
                f"the chat template of {body.model!r} {text}",
                "unsupported_parameter",
            )
        given = [tool.model_dump(exclude_none=True) for tool in body.tools]
        if isinstance(choice, ToolName):
            named = [t for t in given if t["function"]["name"] == choice.function.name]
            if not named:
                raise invalid(
                    "tool_choice", f"{shortened(choice.function.name)!r} is not among tools"
                )
            return named
        return given

    async def _generate(
        self,
        formatter: ChoiceFormatter,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        new_detokenizer: Callable[[], Detokenizer],
        guide_field: str | None,
        request: Request,
    ) -> Response:
        if sampling.guide and self._guides:
            try:
                check = self._guides.check(sampling.guide, sampling.client)
                guide = await _or_client_disconnect(request, check)
            except ValueError as error:
                raise invalid(guide_field or "body", str(error)) from error
            if guide is None:
                return Response(status_code=request_context.CLIENT_CLOSED_REQUEST)
            sampling = dataclasses.replace(sampling, guide=guide)
        async with request_context.current().charged(sum(map(len, prompts))):
            try:
                run = Generation(
                    *(self._engine, self._metrics, body.model, prompts, body.n or 1, sampling),
                    new_detokenizer,
                )
            except ValueError as error:
                raise invalid(guide_field or "model", str(error)) from error
            return await self._respond(formatter, body, run, sampling, guide_field, request)

    def _require_slots(self, prompts: int, n: int) -> None:
        """
        Raises:
            ApiError: the choices exceed what an idle server can hold.
        """
        room = getattr(self._engine, "room", None)
        if room is not None and prompts * n > room:
            raise invalid(
                "n" if prompts == 1 else "prompt",
                f"prompts times n are {prompts * n} choices, and this server holds at most {room} "
                "at a time: send several smaller requests",
            )

    async def _respond(
        self,
        formatter: ChoiceFormatter,
        body: ChatRequest | CompletionRequest,
        run: Generation,
        sampling: Sampling,
        guide_field: str | None,
        request: Request,
    ) -> Response:
        head = {
            "id": f"{'chatcmpl' if formatter.kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        reason, streams = "error", False  # reason: for choices that are unfinished at the end
        try:
            if body.stream:
                deltas = run.deltas()
                early = []
                if sampling.guide:  # the engine may refuse it only now, which needs a 400
                    early = [await _or_client_disconnect(request, anext(deltas))]
                    if early == [None]:
                        reason = "abort"
                        return Response(status_code=request_context.CLIENT_CLOSED_REQUEST)
                streams = True
                events = self._events(formatter, head, run, early, deltas, body)
                return _EventStream(events, run.cancel)
            complete = await _or_client_disconnect(request, run.collect())
            if complete is None:
                reason = "abort"
                return Response(status_code=request_context.CLIENT_CLOSED_REQUEST)
        except ValueError as error:
            raise invalid(guide_field or "body", str(error)) from error
        finally:
            if not streams:
                run.cancel(reason)
        choices = [formatter.complete(delta) for delta in complete]
        return responses.Json(responses.response(formatter.kind, head, choices, _usage(body, run)))

    async def _events(
        self,
        formatter: ChoiceFormatter,
        head: dict[str, Any],
        run: Generation,
        early: Sequence[Delta],
        rest: AsyncIterator[Delta],
        body: ChatRequest | CompletionRequest,
    ) -> AsyncIterator[bytes]:
        """The response as server-sent events: its `early` deltas, then the `rest`."""
        no_usage = {"usage": None} if body.wants_usage else {}

        def events(choices: list[dict[str, Any]]) -> bytes:
            return b"".join(
                _event({**responses.chunk(formatter.kind, head, [choice]), **no_usage})
                for choice in choices
            )

        if choices := formatter.first_chunks():
            yield events(choices)
        try:
            for delta in early:
                yield events(formatter.chunks(delta))
            async for delta in rest:
                if choices := formatter.chunks(delta):
                    yield events(choices)
        except Exception as error:
            run.cancel("error")
            await request_context.current().refund()
            yield _event(self._late_error(error))
            return
        if body.wants_usage:
            yield _event({**responses.chunk(formatter.kind, head, []), "usage": _usage(body, run)})
        yield b"data: [DONE]\n\n"

    def _late_error(self, error: Exception) -> dict[str, Any]:
        """The event for a failure after the first byte; notes it for the log, too."""
        context = request_context.current()
        if isinstance(error, QueueFull):
            context.late_status, context.error = 429, f"rate_limit_exceeded: {error}"
            text = "the engine's queue is full: try again shortly"
            return error_body(text, "rate_limit_error", code="rate_limit_exceeded")
        text = str(error)
        if not isinstance(error, EngineFailed | ValueError):
            log.error("unexpected error", exc_info=error, extra={"request_id": context.id})
            text = f"internal server error: the server's log has the details of {context.id}"
        down = isinstance(error, EngineFailed) and self._engine.down()
        context.late_status, context.error = 503 if down else 500, text
        return error_body(text, "server_error", code="engine_down" if down else None)


def _usage(body: ChatRequest | CompletionRequest, run: Generation) -> dict[str, int]:
    """Does not count the one token that an engine generates for max_tokens=0."""
    return responses.usage(run.prompt_tokens, 0 if body.max_tokens == 0 else run.completion_tokens)


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + to_json(body) + b"\n\n"


class _EventStream(StreamingResponse):
    """Server-sent events that release the generation however the response ends.

    Args:
        on_end: called with the reason: `abort` if the client disconnected, else `error`.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[str], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # by serve.request_timeout; not when a client disconnects
            self._on_end("error")
            raise
        finally:
            self._on_end("abort")  # no effect if the generation has ended


async def _or_client_disconnect(request: Request, work: Any) -> Any:
    """The result of `work`, or None as soon as the client has closed the connection."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return None if disconnected.done() else working.result()
    finally:
        working.cancel()
        disconnected.cancel()
