"""How a generation becomes a response, whole or as server-sent events, in the shape of one API."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic_core import to_json

from pipeline.serving.openai import responses
from pipeline.serving.openai.choices import ChatFormatter, ChoiceFormatter
from pipeline.serving.openai.generation import Delta, Generation
from pipeline.serving.openai.logprobs import TokenTexts, for_prompt
from pipeline.serving.openai.protocol import ChatRequest, CompletionRequest


class Writer(Protocol):
    """Writes one response. All of its bytes are server-sent events."""

    def whole(self, complete: Sequence[Delta], run: Generation) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    def first(self, run: Generation) -> bytes:
        """What a stream begins with."""

    def delta(self, delta: Delta, run: Generation) -> bytes:
        """What is new."""

    def last(self, run: Generation) -> bytes:
        """What a stream ends with."""

    def failure(self, body: dict[str, Any]) -> bytes:
        """The end of a stream that fails. `body`: the error in OpenAI's format."""


class ChatWriterMaker(Protocol):
    """Makes the writer of an answer to a chat."""

    def __call__(self, formatter: ChatFormatter, model: str) -> Writer: ...


class ChoiceWriter:
    """Chat completions, and completions.

    Args:
        head: id, created, model. shown_prompt: fields that show the prompt of a chat.
        texts: for the prompt's log-probabilities, else None.
    """

    def __init__(
        self,
        formatter: ChoiceFormatter,
        head: dict[str, Any],
        body: ChatRequest | CompletionRequest,
        shown_prompt: dict[str, Any],
        texts: TokenTexts | None,
    ) -> None:
        self._formatter, self._head, self._body = formatter, head, body
        self._shown_prompt, self._texts = shown_prompt, texts
        self._more: dict[str, Any] = {"usage": None} if body.wants_usage else {}

    def whole(self, complete: Sequence[Delta], run: Generation) -> dict[str, Any]:
        choices = [self._formatter.complete(delta) for delta in complete]
        if self._texts and self._body.prompt_logprobs is not None:
            found = [
                for_prompt(run.prompt_logprobs(i), self._texts, self._body.prompt_logprobs)
                for i in range(len(choices))
            ]
            if self._formatter.kind == "chat":
                self._shown_prompt["prompt_logprobs"] = found[0]
            else:
                for choice, of_choice in zip(choices, found, strict=True):
                    choice["prompt_logprobs"] = of_choice
        usage = usage_of(self._body, run)
        body = responses.response(self._formatter.kind, self._head, choices, usage)
        return {**body, **self._shown_prompt}

    def first(self, run: Generation) -> bytes:
        return self._events(self._formatter.first_chunks(), run, self._shown_prompt)

    def delta(self, delta: Delta, run: Generation) -> bytes:
        return self._events(self._formatter.chunks(delta), run)

    def last(self, run: Generation) -> bytes:
        end = b"data: [DONE]\n\n"
        if not self._body.wants_usage:
            return end
        chunk = responses.chunk(self._formatter.kind, self._head, [])
        return event({**chunk, "usage": usage_of(self._body, run)}) + end

    def failure(self, body: dict[str, Any]) -> bytes:
        return event(body)

    def _events(
        self, choices: list[dict[str, Any]], run: Generation, more: Mapping[str, Any] | None = None
    ) -> bytes:
        if self._body.wants_usage_always:
            self._more["usage"] = usage_of(self._body, run)
        chunks = (
            {**responses.chunk(self._formatter.kind, self._head, [c]), **self._more, **(more or {})}
            for c in choices
        )
        return b"".join(map(event, chunks))


def usage_of(body: ChatRequest | CompletionRequest, run: Generation) -> dict[str, Any]:
    """Does not count the one token that an engine generates for max_tokens=0."""
    completion = 0 if body.max_tokens == 0 else run.completion_tokens
    return responses.usage(run.prompt_tokens, completion, run.cached_tokens, run.drafts)


def event(body: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    data = b"data: " + to_json(body) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data
