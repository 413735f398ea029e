"""What the endpoints do: a checked request to a prompt, a generation, and a response.

Knows the protocol and the engine; routes, keys and error handlers are app.py's.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pipeline.chat import Chat
from pipeline.console import get_console
from pipeline.errors import DataError
from pipeline.messages import parse_messages
from pipeline.serving import calls, protocol
from pipeline.serving.engine import Engine, EngineFailed, QueueFull, Sampling
from pipeline.serving.generation import Generation
from pipeline.serving.metrics import Metrics
from pipeline.serving.protocol import ChatRequest, CompletionRequest, Kind

RETRY_SECONDS = 1.0  # between attempts at a warm-up answer
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


class Refusal(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(self, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = protocol.error_body(message, **fields)


class Service:
    """What the endpoints do."""

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        metrics: Metrics,
        model: str,
        defaults: dict[str, float],
    ) -> None:
        self.engine, self.chat, self.metrics, self.model = engine, chat, metrics, model
        self.defaults = defaults
        self.card = protocol.model_card(model, int(time.time()), engine.max_seq_len)
        self.ready = False
        self.not_ready = "warming up"
        first = chat.prompt([{"role": "user", "content": "Hello"}])[:1]
        bos = chat.special_tokens.get("bos_token")
        self._begin = first if bos and first == [chat.tokenizer.token_to_id(bos)] else []

    async def warm_up(self) -> None:
        """Be ready once a real answer came out of the engine."""
        prompt = self.chat.prompt([{"role": "user", "content": "Hello"}])
        try:
            async for _ in self.engine.generate(prompt, Sampling(max_tokens=2, temperature=0)):
                pass
            self.ready = True
        except QueueFull:  # clients came first: no probe should send more
            await asyncio.sleep(RETRY_SECONDS)
            await self.warm_up()
        except (EngineFailed, ValueError) as error:
            self.not_ready = f"the warm-up answer failed: {error}"
            get_console().print(f"[red]not ready[/]: {self.not_ready}")

    async def answer_chat(self, body: ChatRequest, request: Request) -> Response:
        self.require_model(body.model)
        try:
            prompt = self.chat.prompt(parse_messages(body.messages, answered=False))
        except DataError as error:
            raise Refusal(400, str(error), param="messages", code="invalid_value") from error
        return await self._answer("chat", body, [prompt], body.limit, [""], request)

    async def answer_text(self, body: CompletionRequest, request: Request) -> Response:
        self.require_model(body.model)
        prompts = [self._ids(prompt) for prompt in body.prompts]
        echoes = [""] * len(prompts)
        if body.echo:
            echoes = [p if isinstance(p, str) else self.chat.decode(p) for p in body.prompts]
        limit = body.max_tokens or COMPLETION_TOKENS
        return await self._answer("text", body, prompts, limit, echoes, request)

    def require_model(self, name: str) -> None:
        if name != self.model or not calls.current().may_use(name):
            raise Refusal(
                404,
                f"The model '{name}' does not exist: this server has '{self.model}'",
                param="model",
                code="model_not_found",
            )

    def _ids(self, prompt: str | list[int]) -> list[int]:
        """Tokens of a completion's prompt; text begins as the model's conversations do."""
        if isinstance(prompt, str):
            ids = self.chat.tokenizer.encode(prompt, add_special_tokens=False).ids
            return ids if ids[:1] == self._begin else self._begin + ids
        highest = self.chat.vocab_size - 1
        if min(prompt) < 0 or max(prompt) > highest:
            raise Refusal(
                400, f"token ids go from 0 to {highest}", param="prompt", code="invalid_value"
            )
        return prompt

    def _sampling(
        self, body: ChatRequest | CompletionRequest, limit: int | None, longest: int
    ) -> Sampling:
        """
        Raises:
            Refusal: prompt and answer do not fit; the message gives both numbers.
        """
        most, read = self.engine.max_seq_len, self.engine.max_input_len
        asked = limit or 1
        if longest + asked > most or longest > read or longest == 0:
            if longest == 0:
                text = "the prompt is empty"
            elif longest > read:
                text = (
                    f"This model reads prompts of at most {read} tokens. However, your prompt has "
                    f"{longest} tokens. Please shorten it."
                )
            else:
                text = (
                    f"This model's maximum context length is {most} tokens. However, you requested "
                    f"{longest + asked} tokens ({longest} in the prompt, {asked} in the "
                    "completion). Please reduce the length of the prompt or completion."
                )
            param = "prompt" if isinstance(body, CompletionRequest) else "messages"
            raise Refusal(400, text, param=param, code="context_length_exceeded")

        def chosen(name: str, otherwise: float) -> float:
            value = getattr(body, name)
            return self.defaults.get(name, otherwise) if value is None else value

        return Sampling(
            max_tokens=limit or most - longest,
            temperature=chosen("temperature", 1.0),
            top_p=chosen("top_p", 1.0),
            top_k=max(0, int(chosen("top_k", 0))),
            seed=None if body.seed is None else body.seed % 2**63,
            stop_ids=frozenset(self.chat.stop_ids),
        )

    async def _answer(
        self,
        kind: Kind,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        limit: int | None,
        echoes: Sequence[str],
        request: Request,
    ) -> Response:
        sampling = self._sampling(body, limit, max(map(len, prompts)))
        n = body.n or 1
        await calls.current().admit(sum(map(len, prompts)))
        run = Generation(self.engine, self.chat, self.metrics, prompts, n, sampling, body.stops)
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.model,
        }
        echoed = [echo for echo in echoes for _ in range(n)]
        if body.stream:
            events = self._events(kind, head, run, echoed, body.wants_usage)
            return _EventStream(events, run.cancel)
        try:
            choices = await _unless_client_leaves(request, run.collect())
        finally:
            run.cancel()
        if choices is None:
            return Response(status_code=calls.CLIENT_LEFT)
        texts = [(echo + text, end) for echo, (text, end) in zip(echoed, choices, strict=True)]
        counts = protocol.usage(run.prompt_tokens, run.completion_tokens)
        return JSONResponse(protocol.response(kind, head, texts, counts))

    async def _events(
        self, kind: Kind, head: dict[str, Any], run: Generation, echoed: list[str], usage: bool
    ) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        nothing = {"usage": None} if usage else {}

        def event(index: int, text: str | None, reason: str | None) -> bytes:
            return _event({**protocol.chunk(kind, head, index, text, reason), **nothing})

        for index, echo in enumerate(echoed):
            if kind == "chat" or echo:
                yield event(index, None if kind == "chat" else echo, None)
        try:
            async for piece in run.pieces():
                if piece.text and piece.reason and kind == "chat":
                    yield event(piece.choice, piece.text, None)
                    yield event(piece.choice, "", piece.reason)
                else:
                    yield event(*piece)
        except EngineFailed as error:
            self.metrics.failed(500)
            calls.current().error = str(error)
            yield _event(protocol.error_body(str(error), "server_error"))
            return
        if usage:
            counts = protocol.usage(run.prompt_tokens, run.completion_tokens)
            yield _event(protocol.usage_chunk(kind, head, counts))
        yield b"data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


class _EventStream(StreamingResponse):
    """Server-sent events that free what they stand for, however the response ends."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _unless_client_leaves(request: Request, work: Any) -> Any:
    """The result of `work`, or None as soon as the client has closed the connection."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
