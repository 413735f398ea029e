"""One request's answers: prompts through the engine, tokens to text, until they end or are left.

Knows nothing of HTTP.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from pipeline.engines.base import Engine, Sampling, Token
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_log
from pipeline.serving.openai.detokenizer import TextStream


class Piece(NamedTuple):
    """What came for a choice; its last piece has the reason why it ended.

    text: may lag behind the tokens, whose end can be half a character or half a stop string.
    tokens: where log-probabilities are asked for, the one that ends the answer among them; with
        prompt_logprobs the prompt's come first.
    """

    choice: int
    text: str
    tokens: list[Token]
    reason: str | None


class _Choice:
    def __init__(self, index: int, engine: Engine, prompt: Sequence[int], how: Sampling) -> None:
        self.index = index
        self.tokens = 0
        self.stop_ids = how.stop_ids
        self.stream = engine.generate(prompt, how)


class Generation:
    """Answers to one or several prompts, `n` of each; begins at once.

    Args:
        model: the name it was asked by.
        decode: text of token ids. stops: strings that end an answer.

    Raises:
        QueueFull: the engine has no room; nothing was begun.
        EngineFailed: it is down.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        model: str,
        prompts: Sequence[Sequence[int]],
        n: int,
        sampling: Sampling,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
    ) -> None:
        self._metrics, self._decode, self._stops = metrics, decode, stops
        self._keeps_tokens = sampling.logprobs is not None
        self._guided = sampling.guide is not None
        self._begin = time.perf_counter()
        self._reasons: dict[int, str] = {}
        self._choices: list[_Choice] = []
        self.prompt_tokens = sum(len(prompt) for prompt in prompts)
        for index in range(len(prompts) * n):
            how = sampling
            if how.seed is not None:  # else n answers to one prompt would be one answer n times
                how = dataclasses.replace(how, seed=(how.seed + index % n) % 2**63)
            try:
                self._choices.append(_Choice(index, engine, prompts[index // n], how))
            except Exception:
                for choice in self._choices:
                    choice.stream.cancel()
                raise
        metrics.prompt_tokens.inc(self.prompt_tokens)
        for prompt in prompts:
            metrics.request_prompt_tokens.observe(len(prompt))
        self._call = request_log.current()
        self._call.model, self._call.prompt_tokens = model, self.prompt_tokens
        self._call.asked = self._begin - self._call.begun

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    def cancel(self, reason: str) -> None:
        """Free what is still in progress, if anything is.

        Args:
            reason: `abort` if the client is gone, `error` if the server cannot go on.
        """
        for choice in self._choices:
            if choice.index not in self._reasons:
                choice.stream.cancel()
                self._end(choice, reason)

    async def collect(self) -> list[Piece]:
        """Each choice in one piece.

        Raises:
            EngineFailed, ValueError: as pieces.
        """
        texts: list[list[str]] = [[] for _ in self._choices]
        tokens: list[list[Token]] = [[] for _ in self._choices]
        async for piece in self.pieces():
            texts[piece.choice].append(piece.text)
            tokens[piece.choice] += piece.tokens
        return [
            Piece(i, "".join(parts), tokens[i], self._reasons[i]) for i, parts in enumerate(texts)
        ]

    def pieces(self) -> AsyncIterator[Piece]:
        """Pieces of all choices, as they come.

        Iterating raises:
            EngineFailed: the engine broke down. ValueError: it cannot do what was asked.
        """
        return self._follow(self._choices[0]) if len(self._choices) == 1 else self._all()

    async def _all(self) -> AsyncIterator[Piece]:
        ready: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def pump(choice: _Choice) -> None:
            try:
                async for piece in self._follow(choice):
                    ready.put_nowait(piece)
            except Exception as error:
                ready.put_nowait(error)

        tasks = [asyncio.create_task(pump(choice)) for choice in self._choices]
        try:
            missing = len(tasks)
            while missing:
                item = await ready.get()
                if isinstance(item, Exception):
                    raise item
                missing -= item.reason is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()

    async def _follow(self, choice: _Choice) -> AsyncIterator[Piece]:
        text = TextStream(self._decode, self._stops)
        reason, first, newest = "length", self._begin, self._begin
        by_itself = False
        async for tokens in choice.stream:
            newest = time.perf_counter()
            kept: list[Token] = []
            if choice.tokens == 0:
                self._metrics.first_token.observe(newest - self._begin)
                first = newest
                self._note_first(choice)
                kept += choice.stream.prompt_logprobs or []
            shown = ""
            for token in tokens:
                choice.tokens += 1
                if self._keeps_tokens:
                    kept.append(token)
                if token.id in choice.stop_ids:
                    reason, by_itself = "stop", not self._guided
                    break
                shown += text.push(token.id)
                if text.stopped:
                    reason = "stop"
                    choice.stream.cancel()
                    break
            if shown or kept:
                yield Piece(choice.index, shown, kept, None)
            if reason == "stop":
                break
        rest = text.finish()
        if text.stopped:
            reason = "stop"
        elif by_itself:
            self._call.ended_by_themselves.add(choice.index)
        self._metrics.request_generation_tokens.observe(choice.tokens)
        self._metrics.decode.observe(newest - first)
        if choice.tokens > 1:
            self._metrics.per_token.observe((newest - first) / (choice.tokens - 1))
        self._end(choice, reason)
        yield Piece(choice.index, rest, [], reason)

    def _note_first(self, choice: _Choice) -> None:
        """Note when a choice left the queue, if its engine says so, and had its first token."""
        now = time.perf_counter()
        started = getattr(choice.stream, "started", None)
        if started is not None:
            self._metrics.queue.observe(started - self._begin)
            self._metrics.prefill.observe(now - started)
        if self._call.first_token is None:
            self._call.first_token = now - self._call.begun
            self._call.queued = None if started is None else started - self._call.begun

    def _end(self, choice: _Choice, reason: str) -> None:
        self._reasons[choice.index] = reason
        self._metrics.finished(reason)
        self._metrics.generation_tokens.inc(choice.tokens)
        self._call.finish_reasons.append(reason)
        self._call.completion_tokens += choice.tokens
        self._call.last_token = self._call.seconds
        if reason != "error":
            self._metrics.latency.observe(time.perf_counter() - self._begin)
