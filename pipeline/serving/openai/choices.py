"""The `choices` of responses, in the formats of chat and of completions, whole or streamed."""

from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.serving.openai import logprobs
from pipeline.serving.openai.generation import Delta
from pipeline.serving.openai.logprobs import Offsets, TokenTexts
from pipeline.serving.openai.responses import Kind
from pipeline.serving.openai.tools import ToolCall, ToolCallFormat, ToolCallParser

Choice = dict[str, Any]


class ChoiceFormatter(Protocol):
    """Formats the choices of one response."""

    kind: Kind

    def first_chunks(self) -> list[Choice]:
        """The choices that a stream begins with, before the first token."""

    def chunks(self, delta: Delta) -> list[Choice]:
        """The choices to stream for a delta, each in an event of its own."""

    def complete(self, delta: Delta) -> Choice:
        """A complete choice, from a delta that has all of it."""


class CompletionFormatter:
    """Completions.

    Args:
        echoes: for each choice, the prompt to show before the completion; empty for none.
        prompts: tokens in each choice's prompt.
        only_prompts: whether to show no completion at all (max_tokens=0).
        texts: for responses with log-probabilities, else None.
        shown_prompts: token ids of each choice's prompt, if the choices show token ids.
    """

    kind: Kind = "text"

    def __init__(
        self,
        echoes: Sequence[str],
        prompts: Sequence[int],
        only_prompts: bool,
        texts: TokenTexts | None,
        shown_prompts: Sequence[list[int]] | None = None,
    ) -> None:
        self._shown_prompts = None if shown_prompts is None else list(shown_prompts)
        self._begun: set[int] = set()
        self._echoes, self._prompts = list(echoes), prompts
        self._only_prompts, self._texts = only_prompts, texts
        self._offsets = [
            Offsets(texts.chat, echo, count)
            for echo, count in zip(echoes, prompts, strict=True)
            if texts
        ]

    def first_chunks(self) -> list[Choice]:
        return []

    def chunks(self, delta: Delta) -> list[Choice]:
        if self._only_prompts and not delta.reason and not self._echoes[delta.choice]:
            return []
        return [self.complete(delta)]

    def complete(self, delta: Delta) -> Choice:
        index, text, tokens, reason, stop = delta
        if self._only_prompts:
            text, tokens, reason = "", tokens[: self._prompts[index]], reason and "length"
        text, self._echoes[index] = self._echoes[index] + text, ""
        found = None
        if self._texts and (tokens or not delta.reason):
            offsets = self._offsets[index].advance(tokens)
            found = logprobs.for_completions(tokens, self._texts, offsets)
        choice = {"index": index, "text": text, "logprobs": found, "finish_reason": reason}
        choice["stop_reason"] = stop
        if self._shown_prompts is not None:
            if index not in self._begun:
                choice["prompt_token_ids"] = self._shown_prompts[index]
            choice["token_ids"] = [token.id for token in tokens]
            self._begun.add(index)
        return choice


class ChatFormatter:
    """Chat completions.

    Args:
        count: number of choices.
        tool_format: the format of tool calls to parse; None to parse none.
        one_call: whether to return at most one tool call.
        named: whether the request named the tool. OpenAI's finish reason is then not "tool_calls".
        texts: for responses with log-probabilities, else None.
        stop_ids: tokens whose log-probabilities are left out.
        shows_ids: whether choices have the ids of their tokens.
        echo: text that each choice begins with.
    """

    kind: Kind = "chat"

    def __init__(
        self,
        count: int,
        tool_format: ToolCallFormat | None = None,
        *,
        one_call: bool = False,
        named: bool = False,
        texts: TokenTexts | None = None,
        stop_ids: frozenset[int] = frozenset(),
        shows_ids: bool = False,
        echo: str = "",
    ) -> None:
        self._shows_ids, self._echo = shows_ids, echo
        self._stop_ids = stop_ids
        self._parsers = [ToolCallParser(tool_format) if tool_format else None for _ in range(count)]
        self._calls = [0] * count
        self._max_calls = 1 if one_call else None
        self._named, self._texts = named, texts

    def first_chunks(self) -> list[Choice]:
        start = {"role": "assistant", "content": self._echo}
        return [_chunk(index, start) for index in range(len(self._parsers))]

    def chunks(self, delta: Delta) -> list[Choice]:
        choice, first_call = delta.choice, self._calls[delta.choice]
        text, calls = self._parse(delta)
        found = self._logprobs(delta)
        shows_ids = self._shows_ids and bool(delta.tokens)
        chunks = []
        if text or found or shows_ids:
            chunks.append(_chunk(choice, {"content": text}, found))
        if shows_ids:
            chunks[0]["token_ids"] = [token.id for token in delta.tokens]
        for index, call in enumerate(calls, first_call):
            chunks.append(_chunk(choice, {"tool_calls": [{"index": index, **_tool_call(call)}]}))
        if delta.reason:
            chunks.append(_chunk(choice, {}, reason=self._reason(delta), stop=delta.stop))
        return chunks

    def complete(self, delta: Delta) -> Choice:
        text, calls = self._parse(delta)
        text = self._echo + text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": [_tool_call(call) for call in calls]}
        choice = {
            "index": delta.choice,
            "message": message,
            "logprobs": self._logprobs(delta),
            "finish_reason": self._reason(delta),
            "stop_reason": delta.stop,
        }
        if self._shows_ids:
            choice["token_ids"] = [token.id for token in delta.tokens]
        return choice

    def _parse(self, delta: Delta) -> tuple[str, list[ToolCall]]:
        """The delta's text, and the tool calls that it completes."""
        parser = self._parsers[delta.choice]
        if parser is None:
            return delta.text, []
        text, calls = parser.feed(delta.text)
        if delta.reason:
            text += parser.finish()
        if self._max_calls is not None:
            calls = calls[: self._max_calls - self._calls[delta.choice]]
        self._calls[delta.choice] += len(calls)
        return text, calls

    def _reason(self, delta: Delta) -> str | None:
        called = delta.reason == "stop" and self._calls[delta.choice] and not self._named
        return "tool_calls" if called else delta.reason

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        """Without the stop token, which OpenAI's API shows in completions only."""
        tokens = [token for token in delta.tokens if token.id not in self._stop_ids]
        return logprobs.for_chat(tokens, self._texts) if tokens and self._texts else None


def _chunk(
    index: int,
    delta: dict[str, Any],
    found: Any = None,
    reason: str | None = None,
    stop: str | int | None = None,
) -> Choice:
    chunk = {"index": index, "delta": delta, "logprobs": found, "finish_reason": reason}
    return {**chunk, "stop_reason": stop} if reason else chunk


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
