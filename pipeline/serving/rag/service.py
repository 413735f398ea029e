"""Chat completions with passages of documents in their prompts, and citations in the responses.

Works on requests and responses as the protocol writes them. With guardrails it stands behind their
input rails, and they check each passage before the model reads it.
"""

import json
import logging
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json

from pipeline.core.errors import DataError
from pipeline.engines.base import Engine
from pipeline.models.chat.renderer import Chat
from pipeline.retrieval.context import Passage, render
from pipeline.retrieval.embedding import RetrievalFailed
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.openai import responses
from pipeline.serving.openai.completions import CompletionService
from pipeline.serving.openai.conversation import parse_conversation
from pipeline.serving.openai.errors import ApiError, invalid
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.protocol import ChatRequest, CompletionRequest
from pipeline.serving.openai.writers import ChatWriterMaker, event
from pipeline.serving.rag.collections import Collections

log = logging.getLogger("pipeline.serving")
ANSWER_TOKENS = 256  # room that passages leave for an answer, if the request sets no limit
SHORTEST = 100  # characters to which a passage is cut so that it fits
FINISH = b'"finish_reason":"'


@dataclass
class Retrieved:
    """What a search found. is_down: it failed, and the model is to answer without passages."""

    collection: str
    passages: list[Passage] = field(default_factory=list)
    is_down: bool = False


class RagService:
    """
    Args:
        service: the endpoints without documents.
        collections: None if the server has none; the `rag` field is then refused.
    """

    def __init__(
        self,
        service: CompletionService,
        collections: Collections | None,
        engine: Engine,
        chat: Chat,
        metrics: Metrics,
        models: ServedModels,
    ) -> None:
        self._service, self._collections = service, collections
        self._engine, self._chat = engine, chat
        self._metrics, self._models = metrics, models

    def close(self) -> None:
        self._service.close()
        if self._collections:
            self._collections.close()

    async def completion(self, body: CompletionRequest, request: Request) -> Response:
        return await self._service.completion(body, request)

    async def chat_completion(
        self, body: ChatRequest, request: Request, new_writer: ChatWriterMaker | None = None
    ) -> Response:
        """
        Raises:
            ApiError: the request is not valid, or the search failed.
        """
        found = getattr(request.state, "retrieved", None)
        if found is None:
            found = await self.retrieve(body, request)
        if found is None:
            return await self._service.chat_completion(body, request, new_writer)
        settings = self._require().settings
        if not found.passages and not found.is_down and settings.on_nothing == "say":
            return self._unknown(body, found)
        if found.passages:
            body = await self._with_passages(body, found)
        names = [passage.chunk.document for passage in found.passages]
        request_context.current().documents += dict.fromkeys(names)
        response = await self._service.chat_completion(body, request)
        return _cited(response, citations(found))

    async def retrieve(
        self, body: ChatRequest, request: Request, question: str | None = None
    ) -> Retrieved | None:
        """What a request's collection has about its last question; None if it uses none.

        question: as rails have changed it. The result is kept for `chat_completion`.

        Raises:
            ApiError: there is no such collection, or the search failed.
        """
        name = self._collection(body)
        if name is None:
            return None
        if question is None:
            question = _question(body)
        if question is None:
            return None
        collections = self._require()
        count = (body.rag.top_k if body.rag else None) or collections.settings.passages
        context = request_context.current()
        found = Retrieved(name)
        try:
            hits, parts = await collections.find(name, question, count, context.labels)
        except RetrievalFailed as error:
            self._metrics.retrieved(name, "failed", {})
            log.error("retrieval failed: %s", error, extra={"request_id": context.id})
            if collections.settings.on_error == "refuse":
                raise ApiError(
                    503,
                    f"the documents of {name} cannot be searched now: try again shortly",
                    kind="server_error",
                    code="retrieval_failed",
                ) from error
            found.is_down = True
        else:
            self._metrics.retrieved(name, "found" if hits else "nothing", parts)
            found.passages = [Passage(hit.chunk, hit.chunk.text, hit.score) for hit in hits]
        request.state.retrieved = found
        return found

    def _require(self) -> Collections:
        assert self._collections is not None
        return self._collections

    def _collection(self, body: ChatRequest) -> str | None:
        if self._collections is None:
            if body.rag is None or body.rag.enabled is False:
                return None
            text = "this server has no documents: start it with serve.rag.indexes"
            raise invalid("rag", text, "unsupported_parameter")
        if body.rag is None:
            return self._collections.settings.default
        if body.rag.enabled is False:
            return None
        name = body.rag.collection or self._collections.settings.default
        if name is None:
            raise invalid(
                "rag.collection", f"name one: this server has {', '.join(self._collections.names)}"
            )
        if name not in self._collections.names:
            raise invalid(
                "rag.collection",
                f"there is no collection {name!r:.80}: this server has "
                f"{', '.join(self._collections.names)}",
            )
        return name

    async def _with_passages(self, body: ChatRequest, found: Retrieved) -> ChatRequest:
        """The request with as many of the passages as its prompt can hold, the best first.

        Raises:
            ApiError: not even a part of one fits.
        """
        longest = self._engine.max_seq_len
        answer = body.limit or min(ANSWER_TOKENS, longest // 4)
        most = min(self._engine.max_input_len, longest - answer)
        while True:
            changed = self._changed(body, found.passages)
            size = sum(len(passage.text) for passage in found.passages)
            if body.truncate_prompt_tokens is not None:
                return changed
            try:
                tokens = len(await self._service.chat_prompt(changed, size))
            except ApiError as error:
                if error.body["error"]["code"] != "context_length_exceeded":
                    raise
                tokens = most + 1
            if tokens <= most:
                return changed
            if len(found.passages) > 1:
                found.passages = found.passages[:-1]
                continue
            first = found.passages[0]
            if len(first.text) < 2 * SHORTEST:
                raise invalid(
                    "messages",
                    "the conversation leaves no room for passages of documents: shorten it, or "
                    "lower max_tokens",
                    "context_length_exceeded",
                )
            half = first.text[: len(first.text) // 2].rpartition(" ")[0] + " …"
            found.passages = [Passage(first.chunk, half, first.score)]

    def _changed(self, body: ChatRequest, passages: Sequence[Passage]) -> ChatRequest:
        """The request with passages in the user's last turn."""
        place = _last_user_turn(body.messages)
        instruction = self._require().settings.instruction
        question = _question(body) or ""
        text = render(instruction, question, passages, self._chat.neutralize)
        messages = list(body.messages)
        messages[place] = {**messages[place], "content": text}
        return body.model_copy(update={"messages": messages})

    def _unknown(self, body: ChatRequest, found: Retrieved) -> Response:
        """The response when nothing is found: the model is not asked."""
        text = self._require().settings.unknown
        context = request_context.current()
        context.model = model = self._models.name_of(body.model)
        count = body.n or 1
        context.finish_reasons += ["stop"] * count
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        said = citations(found)
        base: dict[str, Any] = {"logprobs": None}
        if not body.stream:
            message = {"role": "assistant", "content": text, "refusal": None}
            choices = [
                {"index": i, "message": message, "finish_reason": "stop", **base}
                for i in range(count)
            ]
            whole = responses.response("chat", head, choices, responses.usage(0, 0))
            return responses.Json({**whole, "citations": said})

        async def events() -> AsyncIterator[bytes]:
            for i in range(count):
                for delta, reason in (
                    ({"role": "assistant", "content": ""}, None),
                    ({"content": text}, None),
                    ({}, "stop"),
                ):
                    choice = {"index": i, "delta": delta, "finish_reason": reason, **base}
                    more = {"citations": said} if reason else {}
                    yield event({**responses.chunk("chat", head, [choice]), **more})
            if body.wants_usage:
                yield event({**responses.chunk("chat", head, []), "usage": responses.usage(0, 0)})
            yield b"data: [DONE]\n\n"

        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events(), headers=headers, media_type="text/event-stream")


def citations(found: Retrieved) -> dict[str, Any]:
    """The response's field, in the form of NVIDIA's RAG blueprint, with the numbers that answers
    cite, and where each passage stands."""
    results = [
        {
            "number": number,
            "document_name": passage.chunk.document,
            "document_type": "text",
            "content": passage.text,
            "score": round(passage.score, 4),
            "metadata": {
                "title": passage.chunk.title,
                "headings": list(passage.chunk.headings),
                "page_number": passage.chunk.page,
                "line": passage.chunk.line,
            },
        }
        for number, passage in enumerate(found.passages, 1)
    ]
    said: dict[str, Any] = {
        "collection": found.collection,
        "total_results": len(results),
        "results": results,
    }
    return {**said, "error": "retrieval_failed"} if found.is_down else said


def _last_user_turn(messages: Sequence[Any]) -> int:
    places = [i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "user"]
    return places[-1] if places else -1


def _question(body: ChatRequest) -> str | None:
    """The text of the user's last turn; None without one, or if the service will refuse it."""
    place = _last_user_turn(body.messages)
    if place < 0:
        return None
    try:
        return str(parse_conversation([body.messages[place]])[0]["content"])
    except DataError:
        return None


def _cited(response: Response, said: dict[str, Any]) -> Response:
    """The response with citations: in its body, or in the events that end its choices."""
    if response.status_code != 200:
        return response
    if isinstance(response, StreamingResponse):
        response.body_iterator = _cited_events(response.body_iterator, said)
        return response
    body = json.loads(bytes(response.body))
    return responses.Json({**body, "citations": said})


async def _cited_events(blocks: AsyncIterable[Any], said: dict[str, Any]) -> AsyncIterator[bytes]:
    async for block in blocks:
        if FINISH not in block:
            yield block
            continue
        for part in bytes(block).split(b"\n\n"):
            if FINISH in part:
                chunk = json.loads(part.removeprefix(b"data: "))
                if any(choice["finish_reason"] for choice in chunk["choices"]):
                    chunk["citations"] = said
                yield b"data: " + to_json(chunk) + b"\n\n"
            elif part:
                yield part + b"\n\n"
