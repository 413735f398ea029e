"""How answers are written in OpenAI's two forms, chat's and completions', whole or in pieces."""

from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.serving.openai import logprobs
from pipeline.serving.openai.generation import Piece
from pipeline.serving.openai.logprobs import Offsets, TokenTexts
from pipeline.serving.openai.responses import Kind
from pipeline.serving.openai.tools import Call, CallReader, Style

Choice = dict[str, Any]


class Form(Protocol):
    """Writes the choices of one response."""

    kind: Kind

    def begin(self) -> list[Choice]:
        """What a stream shows first."""

    def go_on(self, piece: Piece) -> list[Choice]:
        """What a stream shows of a piece: each of these in an event of its own."""

    def whole(self, piece: Piece) -> Choice:
        """A choice whose pieces are all in one."""


class TextForm:
    """Completions.

    Args:
        echoes: for each choice the prompt as it is to be shown before the answer, or nothing.
        prompts: tokens in each choice's prompt. only_prompts: if no answer is to be shown at all.
        texts: if log-probabilities are.
    """

    kind: Kind = "text"

    def __init__(
        self,
        echoes: Sequence[str],
        prompts: Sequence[int],
        only_prompts: bool,
        texts: TokenTexts | None,
    ) -> None:
        self._echoes, self._prompts = list(echoes), prompts
        self._only_prompts, self._texts = only_prompts, texts
        self._offsets = [
            Offsets(texts.chat, echo, count)
            for echo, count in zip(echoes, prompts, strict=True)
            if texts
        ]

    def begin(self) -> list[Choice]:
        return []

    def go_on(self, piece: Piece) -> list[Choice]:
        if self._only_prompts and not piece.reason and not self._echoes[piece.choice]:
            return []
        return [self.whole(piece)]

    def whole(self, piece: Piece) -> Choice:
        at, text, tokens, reason = piece
        if self._only_prompts:
            text, tokens, reason = "", tokens[: self._prompts[at]], reason and "length"
        text, self._echoes[at] = self._echoes[at] + text, ""
        found = None
        if self._texts and (tokens or not piece.reason):
            found = logprobs.of_text(tokens, self._texts, self._offsets[at].of(tokens))
        return {"index": at, "text": text, "logprobs": found, "finish_reason": reason}


class ChatForm:
    """Chat completions.

    Args:
        count: choices. style: if calls of tools are to be read out of the answers.
        one_call: at most one of them. named: the request named the tool, which OpenAI's finish
            reason does not count as a call.
        texts: if log-probabilities are to be shown, but for those of stop_ids.
    """

    kind: Kind = "chat"

    def __init__(
        self,
        count: int,
        style: Style | None = None,
        *,
        one_call: bool = False,
        named: bool = False,
        texts: TokenTexts | None = None,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._stop_ids = stop_ids
        self._readers = [CallReader(style) if style else None for _ in range(count)]
        self._calls = [0] * count
        self._most = 1 if one_call else None
        self._named, self._texts = named, texts

    def begin(self) -> list[Choice]:
        start = {"role": "assistant", "content": ""}
        return [_delta(index, start) for index in range(len(self._readers))]

    def go_on(self, piece: Piece) -> list[Choice]:
        at, first = piece.choice, self._calls[piece.choice]
        text, calls = self._parts(piece)
        found = self._logprobs(piece)
        choices = [_delta(at, {"content": text}, found)] if text or found else []
        for index, call in enumerate(calls, first):
            choices.append(_delta(at, {"tool_calls": [{"index": index, **_call(call)}]}))
        if piece.reason:
            choices.append(_delta(at, {}, reason=self._reason(piece)))
        return choices

    def whole(self, piece: Piece) -> Choice:
        text, calls = self._parts(piece)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in calls]}
        return {
            "index": piece.choice,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": self._reason(piece),
        }

    def _parts(self, piece: Piece) -> tuple[str, list[Call]]:
        reader = self._readers[piece.choice]
        if reader is None:
            return piece.text, []
        text, calls = reader.feed(piece.text)
        if piece.reason:
            text += reader.finish()
        calls = calls[: None if self._most is None else self._most - self._calls[piece.choice]]
        self._calls[piece.choice] += len(calls)
        return text, calls

    def _reason(self, piece: Piece) -> str | None:
        called = piece.reason == "stop" and self._calls[piece.choice] and not self._named
        return "tool_calls" if called else piece.reason

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        """Without the token that ends the answer, which OpenAI's API shows in completions only."""
        tokens = [token for token in piece.tokens if token.id not in self._stop_ids]
        return logprobs.of_chat(tokens, self._texts) if tokens and self._texts else None


def _delta(
    index: int, delta: dict[str, Any], found: Any = None, reason: str | None = None
) -> Choice:
    return {"index": index, "delta": delta, "logprobs": found, "finish_reason": reason}


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
