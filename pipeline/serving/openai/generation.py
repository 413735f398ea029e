"""Generation for one request: its prompts go through the engine, and its tokens become text.

Knows nothing of HTTP, and records metrics and the times of the request.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import NamedTuple

from pipeline.engines.base import Engine, EngineFailed, Sampling, Token
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.openai.detokenizer import Detokenizer


class Delta(NamedTuple):
    """What is new in a choice. A choice's last delta has the finish reason.

    text: may lag behind the tokens, which can end within a character or a stop string.
    tokens: for requests with log-probabilities or token ids, including the stop token; if the
        prompt is shown, its tokens come first.
    stop: the stop string or token of the request that ended the choice; None for the model's own.
    """

    choice: int
    text: str
    tokens: list[Token]
    reason: str | None
    stop: str | int | None = None


class _Choice:
    def __init__(
        self, index: int, engine: Engine, prompt: Sequence[int], sampling: Sampling
    ) -> None:
        self.index = index
        self.tokens = 0
        self.prompt_tokens = len(prompt)
        self.stop_ids = sampling.stop_ids
        self.stream = engine.generate(prompt, sampling)


def _no_text(error: BaseException) -> EngineFailed:
    """For any error of the tokenizer, a native library that may also panic."""
    return EngineFailed(f"the answer cannot be turned into text: {type(error).__name__}: {error}")


def _shown(detokenizer: Detokenizer, token: int) -> str:
    try:
        return detokenizer.push(token)
    except BaseException as error:
        raise _no_text(error) from error


class Generation:
    """`n` choices for each of one or several prompts. Submits them to the engine at once.

    Args:
        model: the name in the request.
        new_detokenizer: called once for each choice.
        own_stops: tokens that end an answer for the model itself, not for this request only.
        keeps_tokens: whether deltas have tokens. shows_prompt: whether those of the prompt, too.
        shows_stop: whether the text has the token that ended it.

    Raises:
        QueueFull: the engine's queue is full; nothing was submitted.
        EngineFailed: the engine is down.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        model: str,
        prompts: Sequence[Sequence[int]],
        n: int,
        sampling: Sampling,
        new_detokenizer: Callable[[], Detokenizer],
        *,
        own_stops: Collection[int] = (),
        keeps_tokens: bool = False,
        shows_prompt: bool = False,
        shows_stop: bool = False,
    ) -> None:
        self._metrics, self._new_detokenizer = metrics, new_detokenizer
        self._own_stops, self._keeps_tokens = own_stops, keeps_tokens
        self._shows_prompt, self._shows_stop = shows_prompt, shows_stop
        self._guided = sampling.guide is not None
        self._begin, self._n = time.perf_counter(), n
        self._reasons: dict[int, str] = {}
        self._stops: dict[int, str | int | None] = {}
        self._choices: list[_Choice] = []
        self.prompt_tokens = sum(len(prompt) for prompt in prompts)
        for index in range(len(prompts) * n):
            params = sampling
            if params.seed is not None:  # with one seed, all n choices would be the same
                params = dataclasses.replace(params, seed=(params.seed + index % n) % 2**63)
            try:
                self._choices.append(_Choice(index, engine, prompts[index // n], params))
            except Exception:
                for choice in self._choices:
                    choice.stream.cancel()
                raise
        metrics.prompt_tokens.inc(self.prompt_tokens)
        for prompt in prompts:
            metrics.request_prompt_tokens.observe(len(prompt))
        self._context = request_context.current()
        self._context.model, self._context.prompt_tokens = model, self.prompt_tokens
        self._context.submitted = self._begin - self._context.start_time

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompts that were not read again; None if the engine does not say."""
        found = [getattr(choice.stream, "cached_tokens", None) for choice in self._choices]
        known = [count for count in found if count is not None]
        return sum(known[:: self._n]) if known else None

    @property
    def drafts(self) -> tuple[int, int] | None:
        """Tokens that the engine drafted, and those of them that were right; None without."""
        found = [getattr(choice.stream, "drafts", None) for choice in self._choices]
        known = [counts for counts in found if counts is not None]
        if not known:
            return None
        return sum(drafted for drafted, _ in known), sum(right for _, right in known)

    def prompt_logprobs(self, choice: int) -> list[Token]:
        """The tokens of a choice's prompt, if they were asked for and it has begun."""
        return self._choices[choice].stream.prompt_logprobs or []

    def cancel(self, reason: str) -> None:
        """Cancel the choices that are still in progress.

        Args:
            reason: `abort` if the client disconnected, `error` if the server failed.
        """
        for choice in self._choices:
            if choice.index not in self._reasons:
                choice.stream.cancel()
                self._end(choice, reason)

    async def collect(self) -> list[Delta]:
        """All of each choice, in one delta each.

        Raises:
            EngineFailed, ValueError: see deltas.
        """
        texts: list[list[str]] = [[] for _ in self._choices]
        tokens: list[list[Token]] = [[] for _ in self._choices]
        async for delta in self.deltas():
            texts[delta.choice].append(delta.text)
            tokens[delta.choice] += delta.tokens
        return [
            Delta(i, "".join(parts), tokens[i], self._reasons[i], self._stops.get(i))
            for i, parts in enumerate(texts)
        ]

    def deltas(self) -> AsyncIterator[Delta]:
        """The deltas of all choices, as they come.

        Iterating raises:
            EngineFailed: the engine failed.
            ValueError: the engine cannot do what the request needs.
        """
        return self._follow(self._choices[0]) if len(self._choices) == 1 else self._all()

    async def _all(self) -> AsyncIterator[Delta]:
        ready: asyncio.Queue[Delta | BaseException] = asyncio.Queue()

        async def pump(choice: _Choice) -> None:
            try:
                async for delta in self._follow(choice):
                    ready.put_nowait(delta)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # else the reader would wait for ever
                ready.put_nowait(error)

        tasks = [asyncio.create_task(pump(choice)) for choice in self._choices]
        try:
            missing = len(tasks)
            while missing:
                item = await ready.get()
                if isinstance(item, BaseException):
                    raise item
                missing -= item.reason is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()

    async def _follow(self, choice: _Choice) -> AsyncIterator[Delta]:
        try:
            detokenizer = self._new_detokenizer()
        except BaseException as error:
            raise _no_text(error) from error
        reason, first, newest = "length", self._begin, self._begin
        ended_by_model = False
        stop: str | int | None = None
        async for tokens in choice.stream:
            newest = time.perf_counter()
            kept: list[Token] = []
            if choice.tokens == 0:
                self._metrics.first_token.observe(newest - self._begin)
                cached = getattr(choice.stream, "cached_tokens", None)
                if cached is not None:
                    self._metrics.prefix_queries.inc(choice.prompt_tokens)
                    self._metrics.prefix_hits.inc(cached)
                first = newest
                self._note_first(choice)
                if self._shows_prompt:
                    kept += choice.stream.prompt_logprobs or []
            shown = ""
            for token in tokens:
                choice.tokens += 1
                if self._keeps_tokens:
                    kept.append(token)
                if token.id in choice.stop_ids:
                    reason = "stop"
                    if token.id in self._own_stops:
                        ended_by_model = not self._guided
                    else:
                        stop = token.id
                    if self._shows_stop:
                        shown += _shown(detokenizer, token.id)
                    break
                shown += _shown(detokenizer, token.id)
                if detokenizer.stopped:
                    reason = "stop"
                    choice.stream.cancel()
                    break
            if shown or kept:
                yield Delta(choice.index, shown, kept, None)
            if reason == "stop":
                break
        try:
            rest = detokenizer.finish()
        except BaseException as error:
            raise _no_text(error) from error
        if detokenizer.stopped:
            reason, stop = "stop", detokenizer.stop
        elif ended_by_model:
            self._context.ended_by_model.add(choice.index)
        self._metrics.request_generation_tokens.observe(choice.tokens)
        self._metrics.decode.observe(newest - first)
        if choice.tokens > 1:
            self._metrics.per_token.observe((newest - first) / (choice.tokens - 1))
        self._stops[choice.index] = stop
        self._end(choice, reason)
        yield Delta(choice.index, rest, [], reason, stop)

    def _note_first(self, choice: _Choice) -> None:
        """Note when a choice got its first token and, if the engine says so, left the queue."""
        now = time.perf_counter()
        started = getattr(choice.stream, "started", None)
        if started is not None:
            self._metrics.queue.observe(started - self._begin)
            self._metrics.prefill.observe(now - started)
        if self._context.first_token is None:
            self._context.first_token = now - self._context.start_time
            if started is not None:
                self._context.scheduled = started - self._context.start_time

    def _end(self, choice: _Choice, reason: str) -> None:
        self._reasons[choice.index] = reason
        self._metrics.finished(reason)
        self._metrics.generation_tokens.inc(choice.tokens)
        if drafts := getattr(choice.stream, "drafts", None):
            self._metrics.drafted.inc(drafts[0])
            self._metrics.accepted.inc(drafts[1])
        self._context.finish_reasons.append(reason)
        self._context.completion_tokens += choice.tokens
        self._context.last_token = self._context.seconds
        if reason != "error":
            self._metrics.latency.observe(time.perf_counter() - self._begin)
