"""The endpoints that generate text, with rails before and behind the model.

Works on requests and responses as the protocol writes them, so it holds for tools, several choices
and log-probabilities, and knows nothing of how they come about.
"""

import json
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json

from pipeline.core.errors import DataError
from pipeline.models.chat.messages import Message
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guardrails.configuration import Configuration
from pipeline.serving.guardrails.guard import REFUSAL, REMOVED, Guardrails
from pipeline.serving.guardrails.outcome import Outcome
from pipeline.serving.guardrails.rails import RailFailed
from pipeline.serving.guardrails.report import Report
from pipeline.serving.guardrails.windows import FILTERED, Window, joined
from pipeline.serving.middleware import request_context
from pipeline.serving.openai import responses
from pipeline.serving.openai.conversation import parse_conversation
from pipeline.serving.openai.errors import ApiError, invalid
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.protocol import ChatRequest, CompletionRequest
from pipeline.serving.openai.responses import Kind
from pipeline.serving.rag.service import RagService, Retrieved

# A text of a request. Rails run on the event loop; the patterns of a configuration read a million
# characters in some 100 ms.
MAX_CHARACTERS = 1 << 18
# They bring or return text in forms that rails do not see.
UNCHECKED_FIELDS = (
    "return_token_ids return_tokens_as_token_ids prompt_logprobs return_prompt_text documents "
    "chat_template_kwargs"
).split()
Body = TypeVar("Body", ChatRequest, CompletionRequest)


Retrieve = Callable[[str], Awaitable[Retrieved | None]]


class GuardedService:
    """
    Args:
        service: the endpoints without rails. It stands behind the input rails, so that what they
            block or change is not searched for.
        guardrails: None if the server has none; the `guardrails` field is then refused.
    """

    def __init__(
        self,
        service: RagService,
        guardrails: Guardrails | None,
        chat: Chat,
        models: ServedModels,
    ) -> None:
        self._service, self._guardrails = service, guardrails
        self._chat, self._models = chat, models

    def close(self) -> None:
        self._service.close()

    async def chat_completion(self, body: ChatRequest, request: Request) -> Response:
        selected = self._select(body)
        if not selected:
            return await self._service.chat_completion(body, request)
        try:
            turns = parse_conversation(body.messages)
        except DataError:  # the service refuses it in its own words
            return await self._service.chat_completion(body, request)
        report = Report([c.id for c in selected], body.guardrails)
        run = _Run(self._require(), selected, report, _chunks(body), body.n or 1)
        contents, stop = await run.check_conversation(
            turns, lambda question: self._service.retrieve(body, request, question)
        )
        if stop:
            return _refusal("chat", body, stop, report, self._models.name_of(body.model))
        messages = [
            {**message, "content": contents[i]} if i in contents else message
            for i, message in enumerate(body.messages)
        ]
        changed = body.model_copy(update={"messages": messages})
        response = await self._service.chat_completion(changed, request)
        return await run.check_response(response, logprobs=bool(body.logprobs))

    async def completion(self, body: CompletionRequest, request: Request) -> Response:
        selected = self._select(body)
        if not selected:
            return await self._service.completion(body, request)
        report = Report([c.id for c in selected], body.guardrails)
        count = len(body.prompts) * (body.n or 1)
        run = _Run(self._require(), selected, report, _chunks(body), count)
        prompts: list[str | list[int]] = []
        for prompt in body.prompts:
            try:
                text = prompt if isinstance(prompt, str) else self._chat.decode(prompt)
            except (OverflowError, TypeError, ValueError):  # the service refuses these token ids
                return await self._service.completion(body, request)
            _require_short(text, "prompt")
            checked, stop = await run.check_prompt(text)
            if stop:
                return _refusal("text", body, stop, report, self._models.name_of(body.model))
            prompts.append(prompt if checked == text else checked)
        changed = body.model_copy(update={"prompt": prompts})
        response = await self._service.completion(changed, request)
        return await run.check_response(response, logprobs=body.logprobs is not None)

    def _require(self) -> Guardrails:
        assert self._guardrails is not None
        return self._guardrails

    def _select(self, body: ChatRequest | CompletionRequest) -> list[Configuration]:
        """
        Raises:
            ApiError: there is no such model or configuration, or this server has no guardrails.
        """
        if self._guardrails is None:
            if body.guardrails is not None:
                raise invalid(
                    "guardrails",
                    "this server has no guardrails: start it with serve.guardrails",
                    "unsupported_parameter",
                )
            return []
        self._models.find(body.model)
        for field in UNCHECKED_FIELDS:
            if getattr(body, field, None):
                text = "cannot be used here: this server's guardrails do not check it"
                raise invalid(field, text, "unsupported_parameter")
        try:
            return self._guardrails.select(
                self._models.name_of(body.model), body.guardrails.ids if body.guardrails else ()
            )
        except KeyError as error:
            raise invalid(
                "guardrails.config_ids",
                f"there is no configuration {error.args[0]!r:.100}: this server has "
                f"{', '.join(self._guardrails.ids)}",
            ) from None
        except RailFailed as error:
            raise ApiError(500, str(error), kind="server_error") from error


def _chunks(body: ChatRequest | CompletionRequest) -> str:
    """The retrieved text that the request brings for its rails."""
    context = body.guardrails.context if body.guardrails else None
    chunks = context.relevant_chunks if context else None
    text = "\n".join(chunks) if isinstance(chunks, list) else chunks or ""
    _require_short(text, "guardrails.context.relevant_chunks")
    return text


def _require_short(text: str, field: str) -> None:
    """
    Raises:
        ApiError: rails would need too long for it.
    """
    if len(text) > MAX_CHARACTERS:
        raise invalid(
            field,
            f"has a text of {len(text)} characters, and the server's guardrails check at most "
            f"{MAX_CHARACTERS}: shorten it",
            "context_length_exceeded",
        )


class _Run:
    """The rails of one request.

    Args:
        chunks: retrieved text that the request brings. count: of the response's choices.
    """

    def __init__(
        self,
        guardrails: Guardrails,
        selected: Sequence[Configuration],
        report: Report,
        chunks: str,
        count: int,
    ) -> None:
        self._guardrails, self._selected, self._report = guardrails, selected, report
        self._values: dict[str, Any] = {"relevant_chunks": chunks} if chunks else {}
        self._count = count

    async def check_conversation(
        self, turns: Sequence[Message], retrieve: Retrieve
    ) -> tuple[dict[int, str], Outcome | None]:
        """Contents that differ, by the place of their turn; and the outcome that stops, if any.

        retrieve: finds passages for the last question.
        """
        contents: dict[int, str] = {}
        for turn in turns:
            _require_short(turn["content"], "messages")
        users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
        last = users[-1] if users else None
        self._values["history"] = turns[:last] if last is not None else turns
        for i in users[:-1]:
            text = turns[i]["content"]
            checked = await self._guardrails.check_earlier(self._selected, {"user_message": text})
            self._report.add(checked.outcomes)
            if checked.stop or checked.text != text:
                contents[i] = REMOVED if checked.stop else checked.text
        for i, turn in enumerate(turns):
            if turn["role"] == "tool" and i > (-1 if last is None else last):
                given = {"tool_message": turn["content"], "tool_name": turn.get("name", "")}
                stop = await self._check("tool_input", given)
                if stop:
                    return {}, stop
                if self._values["tool_message"] != turn["content"]:
                    contents[i] = self._values["tool_message"]
        if last is None:
            return contents, None
        text, stop = await self.check_prompt(
            turns[last]["content"], answers=last == len(turns) - 1, retrieve=retrieve
        )
        if text != turns[last]["content"]:
            contents[last] = text
        return contents, stop

    async def check_prompt(
        self, text: str, answers: bool = True, retrieve: Retrieve | None = None
    ) -> tuple[str, Outcome | None]:
        """The text after the input rails, and the outcome that stops, if any.

        answers: whether the model answers this turn, and not a tool's result after it.
        retrieve: finds passages for it.
        """
        if stop := await self._check("input", {"user_message": text}):
            return text, stop
        if "relevant_chunks" in self._values and (stop := await self._check("retrieval", {})):
            return text, stop
        if retrieve and (found := await retrieve(self._values["user_message"])):
            await self._check_passages(found)
        if answers:
            outcomes = await self._guardrails.dialog(self._selected, self._values)
            self._report.add(outcomes)
            if outcomes and outcomes[-1].stops:
                return text, outcomes[-1]
        return self._values["user_message"], None

    async def _check_passages(self, found: Retrieved) -> None:
        """Leave out the passages that a rail blocks or empties: one bad document must not silence
        the rest."""
        kept = []
        for passage in found.passages:
            given = {"relevant_chunks": passage.text}
            checked = await self._guardrails.check(
                self._selected, "retrieval", self._values | given
            )
            self._report.add(checked.outcomes)
            text = checked.values["relevant_chunks"]
            if not checked.stop and text.strip():
                kept.append(replace(passage, text=text))
        found.passages = kept
        own = [self._values["relevant_chunks"]] if "relevant_chunks" in self._values else []
        if texts := [*own, *(passage.text for passage in kept)]:
            self._values["relevant_chunks"] = "\n".join(texts)

    async def _check(self, kind: Any, given: dict[str, Any]) -> Outcome | None:
        checked = await self._guardrails.check(self._selected, kind, self._values | given)
        self._report.add(checked.outcomes)
        self._values |= checked.values
        return checked.stop

    @property
    def _checking(self) -> list[Configuration]:
        """The configurations that check the answer."""
        has_chunks = "relevant_chunks" in self._values
        return [c for c in self._selected if c.checks_answers(with_chunks=has_chunks)]

    async def check_response(self, response: Response, *, logprobs: bool) -> Response:
        """The response with its texts checked; an error is left as it is."""
        checks = self._checking
        if response.status_code != 200 or not (checks or self._report.to_json()):
            self._guardrails.observe(self._report.seconds, None)
            return response
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._events(response.body_iterator, logprobs)
            return response
        body = json.loads(bytes(response.body))
        for choice in body["choices"]:
            await self._check_choice(choice)
        if all(choice["finish_reason"] == FILTERED for choice in body["choices"]):
            body.pop("citations", None)
        if (found := self._report.to_json()) is not None:
            body["guardrails"] = found
        self._guardrails.observe(self._report.seconds, None)
        return responses.Json(body)

    async def _check_choice(self, choice: dict[str, Any]) -> None:
        """Check a complete choice, and replace what rails block or change."""
        place = choice.get("message", choice)
        name = "content" if "message" in choice else "text"
        text = place[name] or ""
        for thoughts in ("reasoning", "reasoning_content"):
            place.pop(thoughts, None)  # rails do not check them
        stop = await self._check("output", {"bot_message": text})
        for call in place.get("tool_calls") or ():
            stop = stop or await self._check_call(call["function"])
        if stop:
            place[name] = stop.message or REFUSAL
            place.pop("tool_calls", None)
            choice["finish_reason"] = FILTERED
        elif self._values["bot_message"] == text:
            return
        else:
            place[name] = self._values["bot_message"]
        choice["logprobs"] = None  # they would spell the text out

    async def _check_call(self, function: dict[str, Any]) -> Outcome | None:
        """Check the arguments of a tool call, as an answer and as a call."""
        arguments = function["arguments"]
        message = self._values["bot_message"]
        stop = await self._check("output", {"bot_message": arguments})
        if not stop and self._values["bot_message"] != arguments:
            function["arguments"] = self._values["bot_message"]
        self._values["bot_message"] = message
        return stop or await self._check("tool_output", {"tool_calls": [function]})

    async def _events(self, blocks: AsyncIterable[Any], logprobs: bool) -> AsyncIterator[bytes]:
        """The response's server-sent events, released as their texts pass.

        With log-probabilities everything waits for the end: they belong to tokens, not to windows.
        """
        streaming = None if logprobs else joined(c.streaming for c in self._checking)
        windows: dict[int, Window] = {}
        head: dict[str, Any] = {}
        first_text: float | None = None
        async for event in _parsed(blocks):
            if "error" in event:
                yield _event(event)
                return
            if not event["choices"]:  # usage
                yield _event(event)
                continue
            head = {name: event[name] for name in ("id", "object", "created", "model")}
            for choice in event["choices"]:
                index = choice["index"]
                if index not in windows:
                    windows[index] = Window(streaming, self._check_text, self._check_call, REFUSAL)
                for ready in await windows[index].push(choice):
                    if windows[index].filtered:
                        event.pop("citations", None)
                    yield _event({**event, "choices": [ready]})
                if first_text is None and windows[index].released:
                    first_text = request_context.current().seconds
            if len(windows) == self._count and all(w.filtered for w in windows.values()):
                break
        self._guardrails.observe(self._report.seconds, first_text)
        if self._report.is_asked:
            yield _event({**head, "choices": [], "guardrails": self._report.to_json()})
        yield b"data: [DONE]\n\n"

    async def _check_text(self, text: str) -> tuple[str, Outcome | None]:
        stop = await self._check("output", {"bot_message": text})
        return self._values["bot_message"], stop


async def _parsed(blocks: AsyncIterable[Any]) -> AsyncIterator[dict[str, Any]]:
    """The bodies of server-sent events, up to [DONE]."""
    async for block in blocks:
        for event in bytes(block).split(b"\n\n"):
            data = event.removeprefix(b"data: ")
            if data and data != b"[DONE]":
                yield json.loads(data)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + to_json(body) + b"\n\n"


def _refusal(kind: Kind, body: Body, stop: Outcome, report: Report, model: str) -> Response:
    """The response to a request that does not reach the model."""
    head = {
        "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
    }
    context = request_context.current()
    context.model = model
    text = stop.message or REFUSAL
    reason = "stop" if stop.decision == "answered" else FILTERED
    prompts = 1 if isinstance(body, ChatRequest) else len(body.prompts)
    count = prompts * (body.n or 1)
    context.finish_reasons += [reason] * count
    found = report.to_json()
    if not body.stream:
        choices = [_choice(kind, index, text, reason) for index in range(count)]
        answer = responses.response(kind, head, choices, responses.usage(0, 0))
        return responses.Json({**answer, "guardrails": found})

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _event({**responses.chunk(kind, head, choices), **more})

    async def events() -> AsyncIterator[bytes]:
        for index in range(count):
            if kind == "chat":
                start = {"role": "assistant", "content": ""}
                base = {"index": index, "logprobs": None}
                yield chunk([{**base, "delta": start, "finish_reason": None}])
                yield chunk([{**base, "delta": {"content": text}, "finish_reason": None}])
                yield chunk([{**base, "delta": {}, "finish_reason": reason}])
            else:
                yield chunk([_choice(kind, index, text, reason)])
        if body.wants_usage:
            yield chunk([], usage=responses.usage(0, 0))
        if report.is_asked:
            yield chunk([], guardrails=found)
        yield b"data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), headers=headers, media_type="text/event-stream")


def _choice(kind: Kind, index: int, text: str, reason: str) -> dict[str, Any]:
    base = {"index": index, "logprobs": None, "finish_reason": reason}
    if kind == "text":
        return {**base, "text": text}
    return {**base, "message": {"role": "assistant", "content": text, "refusal": None}}
