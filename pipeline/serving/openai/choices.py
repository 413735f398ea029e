"""The `choices` of responses, in the formats of chat and of completions, whole or streamed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from pipeline.serving.openai import logprobs
from pipeline.serving.openai.generation import Delta
from pipeline.serving.openai.logprobs import Offsets, TokenTexts
from pipeline.serving.openai.responses import Kind
from pipeline.serving.parsers.detection import new_id
from pipeline.serving.parsers.events import AnswerParser, Arguments, Call, Event, Text, Thought

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
        new_parser: called for each choice; None for answers that are only text.
        one_call: whether to return at most one tool call.
        named: whether the request named the tool. OpenAI's finish reason is then not "tool_calls".
        shows_thoughts: whether choices have the model's thoughts.
        texts: for responses with log-probabilities, else None.
        stop_ids: tokens whose log-probabilities are left out.
        shows_ids: whether choices have the ids of their tokens.
        echo: text that each choice begins with.
    """

    kind: Kind = "chat"

    def __init__(
        self,
        count: int,
        new_parser: Callable[[], AnswerParser] | None = None,
        *,
        one_call: bool = False,
        named: bool = False,
        shows_thoughts: bool = True,
        texts: TokenTexts | None = None,
        stop_ids: frozenset[int] = frozenset(),
        shows_ids: bool = False,
        echo: str = "",
    ) -> None:
        self._shows_ids, self._echo, self._shows_thoughts = shows_ids, echo, shows_thoughts
        self._stop_ids = stop_ids
        self._parsers = [new_parser() if new_parser else None for _ in range(count)]
        self._calls = [0] * count
        self._max_calls = 1 if one_call else None
        self._named, self._texts = named, texts

    def first_chunks(self) -> list[Choice]:
        start = {"role": "assistant", "content": self._echo}
        return [_chunk(index, start) for index in range(len(self._parsers))]

    def chunks(self, delta: Delta) -> list[Choice]:
        choice = delta.choice
        if not (delta.reason or delta.tokens or self._parsers[choice]):  # the most common ones
            return [_chunk(choice, {"content": delta.text})] if delta.text else []
        chunks = [_chunk(choice, part) for part in self._parts(choice, self.events(delta))]
        found = self._logprobs(delta)
        shows_ids = self._shows_ids and bool(delta.tokens)
        if not chunks and (found or shows_ids):
            chunks.append(_chunk(choice, {"content": ""}))
        if found:
            chunks[0]["logprobs"] = found
        if shows_ids:
            chunks[0]["token_ids"] = [token.id for token in delta.tokens]
        if delta.reason:
            chunks.append(_chunk(choice, {}, reason=self.reason(delta), stop=delta.stop))
        return chunks

    def complete(self, delta: Delta) -> Choice:
        text, thought, calls = self._echo, "", list[dict[str, Any]]()
        for event in self.events(delta):
            if isinstance(event, Text):
                text += event.text
            elif isinstance(event, Thought):
                thought += event.text
            elif isinstance(event, Call):
                calls.append(_tool_call(event.name))
            else:
                calls[-1]["function"]["arguments"] += event.text
        self._calls[delta.choice] = len(calls)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        if thought:
            message |= _thought(thought)
        choice = {
            "index": delta.choice,
            "message": message,
            "logprobs": self._logprobs(delta),
            "finish_reason": self.reason(delta),
            "stop_reason": delta.stop,
        }
        if self._shows_ids:
            choice["token_ids"] = [token.id for token in delta.tokens]
        return choice

    def events(self, delta: Delta) -> Iterator[Event]:
        """What the delta consists of, without what the response does not show."""
        parser = self._parsers[delta.choice]
        if parser is None:
            if delta.text:
                yield Text(delta.text)
            return
        found = parser.feed(delta.text)
        if delta.reason:
            found += parser.finish()
        for event in joined(found):
            if isinstance(event, Call):
                self._calls[delta.choice] += 1
            too_many = self._max_calls is not None and self._calls[delta.choice] > self._max_calls
            if isinstance(event, Call | Arguments) and too_many:
                continue
            if self._shows_thoughts or not isinstance(event, Thought):
                yield event

    def logprobs_of(self, delta: Delta) -> list[dict[str, Any]]:
        """The log-probabilities of the delta's tokens, if the response has any."""
        found = self._logprobs(delta)
        return found["content"] if found else []

    def _parts(self, choice: int, events: Iterable[Event]) -> Iterator[dict[str, Any]]:
        """What is new in a message, part by part."""
        for event in events:
            if isinstance(event, Text):
                yield {"content": event.text}
            elif isinstance(event, Thought):
                yield _thought(event.text)
            else:
                index = {"index": self._calls[choice] - 1}
                if isinstance(event, Call):
                    yield {"tool_calls": [{**index, **_tool_call(event.name)}]}
                else:
                    yield {"tool_calls": [{**index, "function": {"arguments": event.text}}]}

    def reason(self, delta: Delta) -> str | None:
        """Why the choice ended; None if it has not."""
        called = delta.reason == "stop" and self._calls[delta.choice] and not self._named
        return "tool_calls" if called else delta.reason

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        """Without the stop token, which OpenAI's API shows in completions only."""
        tokens = [token for token in delta.tokens if token.id not in self._stop_ids]
        return logprobs.for_chat(tokens, self._texts) if tokens and self._texts else None


def joined(events: Iterable[Event]) -> Iterator[Event]:
    """The events, with texts of one kind that follow one another in one."""
    last: Event | None = None
    for event in events:
        if last is not None and type(event) is type(last) and not isinstance(event, Call):
            last = type(event)(last[0] + event[0])
            continue
        if last is not None:
            yield last
        last = event
    if last is not None:
        yield last


def _thought(text: str) -> dict[str, str]:
    """A thought by the names that clients look for: vLLM's is `reasoning` since 0.12."""
    return {"reasoning_content": text, "reasoning": text}


def _chunk(
    index: int,
    delta: dict[str, Any],
    found: Any = None,
    reason: str | None = None,
    stop: str | int | None = None,
) -> Choice:
    chunk = {"index": index, "delta": delta, "logprobs": found, "finish_reason": reason}
    return {**chunk, "stop_reason": stop} if reason else chunk


def _tool_call(name: str) -> dict[str, Any]:
    return {"id": new_id(), "type": "function", "function": {"name": name, "arguments": ""}}
