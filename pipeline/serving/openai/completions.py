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
from starlette.types import Receive, Scope, Send

from pipeline.core.errors import DataError
from pipeline.engines.base import Engine, EngineFailed, Guide, QueueFull, Sampling
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guides.checker import GuideChecker
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.openai import responses
from pipeline.serving.openai.choices import ChatFormatter, ChoiceFormatter, CompletionFormatter
from pipeline.serving.openai.conversation import content_of
from pipeline.serving.openai.detokenizer import Detokenizer
from pipeline.serving.openai.errors import error_body, invalid, shortened
from pipeline.serving.openai.generation import Delta, Generation
from pipeline.serving.openai.guide_fields import require_short
from pipeline.serving.openai.logprobs import TokenIdTexts, TokenTexts
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.prompts import PromptRenderer, Rendering
from pipeline.serving.openai.protocol import AllowedTools, ChatRequest, CompletionRequest, ToolName
from pipeline.serving.openai.sampling_params import SamplingParamsBuilder, shows_prompt_logprobs
from pipeline.serving.openai.template_values import template_values
from pipeline.serving.openai.writers import ChatWriterMaker, ChoiceWriter, Writer
from pipeline.serving.parsers.detection import AnswerFormat
from pipeline.serving.parsers.events import AnswerParser
from pipeline.serving.parsers.families import ToolFamily, tools_guide

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
        answers: AnswerFormat,
    ) -> None:
        self._engine, self._chat, self._metrics = engine, chat, metrics
        self._models, self._sampling_params = models, sampling_params
        self._texts = TokenTexts(chat)
        self._answers = answers
        # Where thoughts or calls begin with control tokens, the parser must see them.
        self._shows_control = {
            with_tools: answers.shows_control(chat, with_tools=with_tools)
            for with_tools in (False, True)
        }
        self._prompts = PromptRenderer(chat, engine)
        self._guides = None
        if "guide" in engine.features:
            self._guides = GuideChecker(chat.tokenizer.to_str(), chat.stop_ids)

    def close(self) -> None:
        if self._guides:
            self._guides.close()

    async def chat_completion(
        self, body: ChatRequest, request: Request, new_writer: ChatWriterMaker | None = None
    ) -> Response:
        """
        Args:
            new_writer: for a response in the shape of another API.

        Raises:
            ApiError: the request is not valid for this model.
        """
        adapter = self._models.find(body.model)
        field, guide = self._sampling_params.guide(body)
        callable_tools = self._callable_tools(body)
        self._require_slots(1, body.n or 1)
        prompt = await self.chat_prompt(body, len(await request.body()))
        field, guide, is_forced = self._tool_guide(body, callable_tools, field, guide)
        sampling = self._sampling_params.build(body, body.limit, [len(prompt)], guide, adapter)
        formatter = ChatFormatter(
            body.n or 1,
            self._new_parser(body, prompt, callable_tools, guided=bool(guide) and is_forced),
            one_call=body.parallel_tool_calls is False,
            named=isinstance(body.tool_choice, ToolName),
            shows_thoughts=body.include_reasoning is not False,
            texts=await self._ready_texts(body) if body.logprobs else None,
            stop_ids=sampling.stop_ids,
            shows_ids=bool(body.return_token_ids),
            echo=_echo(body),
        )
        new_detokenizer = self._detokenizers(
            body, shows_control=self._shows_control[bool(callable_tools)]
        )
        if new_writer:
            writer = new_writer(formatter, self._models.name_of(body.model))
        else:
            writer = await self._choice_writer(formatter, body, prompt)
        return await self._generate(
            writer, body, [prompt], sampling, new_detokenizer, field, request
        )

    async def completion(self, body: CompletionRequest, request: Request) -> Response:
        adapter = self._models.find(body.model)
        field, guide = self._sampling_params.guide(body)
        self._require_slots(len(body.prompts), body.n or 1)
        prompts = await self.completion_prompts(body, len(await request.body()))
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
            await self._ready_texts(body) if body.logprobs is not None else None,
            [ids for ids in prompts for _ in range(n)] if body.return_token_ids else None,
        )
        new_detokenizer = self._detokenizers(body)
        writer = await self._choice_writer(formatter, body)
        return await self._generate(
            writer, body, prompts, sampling, new_detokenizer, field, request
        )

    async def _choice_writer(
        self,
        formatter: ChoiceFormatter,
        body: ChatRequest | CompletionRequest,
        prompt: list[int] | None = None,
    ) -> ChoiceWriter:
        """`prompt`: of a chat, which may be shown."""
        head = {
            "id": self.new_id(body),
            "created": int(time.time()),
            "model": self._models.name_of(body.model),
        }
        shown: dict[str, Any] = {}
        if body.return_token_ids and prompt is not None:
            shown["prompt_token_ids"] = prompt
        if body.return_prompt_text and prompt is not None:
            shown["prompt_text"] = self._chat.decode(prompt, control_tokens=True)
        texts = None if body.prompt_logprobs is None else await self._ready_texts(body)
        return ChoiceWriter(formatter, head, body, shown, texts)

    async def chat_prompt(self, body: ChatRequest, size: int) -> list[int]:
        """The token ids of a chat's prompt.

        Args:
            size: bytes of the request.

        Raises:
            ApiError: a field is not valid for this model.
        """
        how = self._rendering(body)
        return await self._prompts.chat(body.messages, self._shown_tools(body), size, how)

    async def completion_prompts(self, body: CompletionRequest, size: int) -> list[list[int]]:
        """The token ids of each prompt.

        Args:
            size: bytes of the request.

        Raises:
            ApiError: a prompt is not valid for this model.
        """
        how = _truncation(body, bos=body.add_special_tokens is not False)
        return await self._prompts.completions(body.prompts, size, how)

    def new_id(self, body: ChatRequest | CompletionRequest) -> str:
        """The id of a response."""
        kind = "chatcmpl" if isinstance(body, ChatRequest) else "cmpl"
        return f"{kind}-{body.request_id or uuid.uuid4().hex}"

    def _rendering(self, body: ChatRequest) -> Rendering:
        """
        Raises:
            ApiError: the fields contradict each other, or the template does not read one of them.
        """
        if body.add_special_tokens:
            raise invalid(
                "add_special_tokens",
                "the chat template writes them already: leave it out",
                "unsupported_parameter",
            )
        if body.continue_final_message and body.add_generation_prompt:
            raise invalid(
                "continue_final_message", "contradicts add_generation_prompt: leave one of them out"
            )
        return dataclasses.replace(
            _truncation(body),
            values=template_values(body, self._chat.template),
            generation_prompt=body.add_generation_prompt is not False,
            goes_on=bool(body.continue_final_message),
        )

    async def _ready_texts(self, body: ChatRequest | CompletionRequest) -> TokenTexts:
        texts = await self._texts.ready()
        return TokenIdTexts(texts) if body.return_tokens_as_token_ids else texts

    def _detokenizers(
        self, body: ChatRequest | CompletionRequest, *, shows_control: bool = False
    ) -> Callable[[], Detokenizer]:
        return partial(
            Detokenizer,
            *(self._chat.tokenizer, body.stops),
            control_tokens=shows_control or body.skip_special_tokens is False,
            shows_stop=bool(body.include_stop_str_in_output),
            unchecked=body.min_tokens or 0,
        )

    def _new_parser(
        self,
        body: ChatRequest,
        prompt: Sequence[int],
        callable_tools: Sequence[Mapping[str, Any]] | None,
        *,
        guided: bool,
    ) -> Callable[[], AnswerParser] | None:
        """Makes a parser for each choice; None if answers are only text.

        guided: whether the whole answer has a given form, which leaves no room for a thought.
        """
        parse = self._answers.parser(
            with_tools=bool(callable_tools),
            thinks=not guided,
            begun=self._answers.begins_thought(self._chat, prompt),
        )
        if parse is None:
            return None
        given = [tool["function"] for tool in callable_tools or ()]
        schemas = {tool["name"]: tool.get("parameters") or {} for tool in given}
        return partial(AnswerParser, parse, schemas, whole=not body.stream)

    def _tool_guide(
        self,
        body: ChatRequest,
        callable_tools: list[dict[str, Any]] | None,
        field: str | None,
        guide: Guide | None,
    ) -> tuple[str | None, Guide | None, bool]:
        """The guide of an answer that may or must call tools, and the field that asks for it.

        An engine without guides leaves the arguments of a call that the model chooses to make as
        the model writes them, as it does for tools that are not strict.

        Returns:
            Also whether the guide leaves the model no choice.

        Raises:
            ApiError: a call is asked for that cannot be forced.
        """
        choice, family = body.tool_choice, self._answers.tools
        if not callable_tools or family is None:
            return field, guide, True
        most = 1 if body.parallel_tool_calls is False else None
        make = partial(
            tools_guide, self._chat, family, callable_tools, self._sampling_params.json_whitespace
        )
        if _is_forced(choice):
            if field:
                raise invalid(field, "cannot be combined with a tool_choice that forces a call")
            self._sampling_params.require("tool_choice", "guide")
            self._require_guides(family, "call")
            return "tools", make(), True
        if not _is_bound(choice, callable_tools):
            return field, guide, True
        if isinstance(choice, AllowedTools):
            self._sampling_params.require("tool_choice", "guide")
            self._require_guides(family, "mixes")
        can = family.call and family.mixes and "guide" in self._engine.features
        if field or body.ignore_eos or not can:
            return field, guide, True
        return "tools", make(optional=True, most=most), False

    def _require_guides(self, family: ToolFamily, what: str) -> None:
        if not getattr(family, what) or family.call is None:
            raise invalid(
                "tool_choice",
                f"calls in the form of {family.name} cannot be forced: use auto or none",
                "unsupported_parameter",
            )

    def _shown_tools(self, body: ChatRequest) -> list[dict[str, Any]] | None:
        """The tools that the prompt shows: with allowed_tools all of them, as OpenAI does."""
        if isinstance(body.tool_choice, AllowedTools) and body.tools:
            return [tool.model_dump(exclude_none=True) for tool in body.tools]
        return self._callable_tools(body)

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
        if not (self._answers.accepts_tools and self._answers.tools):
            text = (
                "writes tool calls in a format that this server cannot parse"
                if self._answers.accepts_tools
                else "does not support tools, so the model was not trained to call any"
            )
            raise invalid(
                "tools",
                f"the chat template of {self._models.name_of(body.model)!r} {text}",
                "unsupported_parameter",
            )
        given = [tool.model_dump(exclude_none=True) for tool in body.tools]
        if isinstance(choice, AllowedTools):
            names = [tool.function.name for tool in choice.allowed_tools.tools]
            known = {tool["function"]["name"] for tool in given}
            if unknown := next((name for name in names if name not in known), None):
                raise invalid("tool_choice", f"{shortened(unknown)!r} is not among tools")
            return [tool for tool in given if tool["function"]["name"] in names]
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
        writer: Writer,
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
        guided = sampling.guide is not None
        async with request_context.current().charged(sum(map(len, prompts))):
            try:
                run = Generation(
                    self._engine,
                    self._metrics,
                    self._models.name_of(body.model),
                    prompts,
                    body.n or 1,
                    sampling,
                    new_detokenizer,
                    own_stops=self._chat.stop_ids,
                    keeps_tokens=sampling.logprobs is not None or bool(body.return_token_ids),
                    shows_prompt=shows_prompt_logprobs(body),
                    shows_stop=bool(body.include_stop_str_in_output),
                )
            except ValueError as error:
                raise invalid(guide_field or "model", str(error)) from error
            return await self._respond(
                writer, run, guide_field, request, streams=bool(body.stream), guided=guided
            )

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
        writer: Writer,
        run: Generation,
        guide_field: str | None,
        request: Request,
        *,
        streams: bool,
        guided: bool,
    ) -> Response:
        reason, begun = "error", False  # reason: for choices that are unfinished at the end
        try:
            if streams:
                deltas = run.deltas()
                early = []
                if guided:  # the engine may refuse it only now, which needs a 400
                    early = [await _or_client_disconnect(request, anext(deltas))]
                    if early == [None]:
                        reason = "abort"
                        return Response(status_code=request_context.CLIENT_CLOSED_REQUEST)
                begun = True
                return _EventStream(self._events(writer, run, early, deltas), run.cancel)
            complete = await _or_client_disconnect(request, run.collect())
            if complete is None:
                reason = "abort"
                return Response(status_code=request_context.CLIENT_CLOSED_REQUEST)
        except ValueError as error:
            raise invalid(guide_field or "body", str(error)) from error
        finally:
            if not begun:
                run.cancel(reason)
        return responses.Json(writer.whole(complete, run))

    async def _events(
        self,
        writer: Writer,
        run: Generation,
        early: Sequence[Delta],
        rest: AsyncIterator[Delta],
    ) -> AsyncIterator[bytes]:
        """The response as server-sent events: its `early` deltas, then the `rest`."""
        if events := writer.first(run):
            yield events
        try:
            for delta in early:
                yield writer.delta(delta, run)
            async for delta in rest:
                if events := writer.delta(delta, run):
                    yield events
        except Exception as error:
            run.cancel("error")
            await request_context.current().refund()
            yield writer.failure(self._late_error(error))
            return
        yield writer.last(run)

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


def _is_forced(choice: Any) -> bool:
    if isinstance(choice, AllowedTools):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or isinstance(choice, ToolName)


def _is_bound(choice: Any, callable_tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a guide must see to the calls that the model chooses to make."""
    strict = any(tool["function"].get("strict") for tool in callable_tools)
    return strict or isinstance(choice, AllowedTools)


def _truncation(body: ChatRequest | CompletionRequest, *, bos: bool = True) -> Rendering:
    return Rendering(
        keep=body.truncate_prompt_tokens, from_left=body.truncation_side != "right", bos=bos
    )


def _echo(body: ChatRequest) -> str:
    """The text of the last turn, if an answer that goes on with it is to begin with it.

    Raises:
        ApiError: the last turn is not the assistant's, so that there is nothing to repeat.
    """
    if not body.echo:
        return ""
    last = body.messages[-1] if body.messages else None
    if not (isinstance(last, dict) and last.get("role") == "assistant"):
        raise invalid("echo", "needs a last turn of the assistant, with continue_final_message")
    try:
        return content_of(last.get("content"), "messages[-1]")
    except DataError as error:
        raise invalid("messages", str(error)) from error


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
