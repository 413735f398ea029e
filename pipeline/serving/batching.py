"""Continuous batching: requests join and leave between the steps of one running batch.

One thread owns the model. Each of its steps reads a bounded number of prompt tokens, so that long
prompts do not stall answers in progress, and then adds one token to every answer. Sequences in
progress occupy the model's first rows; the one whose prompt is being read is in the row after them.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pipeline.serving.engine import EngineFailed, Load, QueueFull, Sampling, Token
from pipeline.serving.sampling import Sampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPT_TOKENS_PER_STEP = 512


class StepModel(Protocol):
    """A model with a cache of `slots` rows; see adapters.onnxruntime_session.DecoderSession."""

    slots: int
    max_seq_len: int

    def prefill(self, row: int, ids: Sequence[int], start: int) -> "NDArray[np.float32]": ...

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> "NDArray[np.float32]": ...

    def move(self, source: int, target: int, length: int) -> None: ...


class _End:
    """The last item of an answer's queue."""


_Ending = EngineFailed | _End
_Item = int | _Ending


class Answer:
    """One request in the engine, and the stream of its tokens (engine.TokenStream)."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.prompt = list(prompt)
        self.sampling = sampling
        self.sampler = Sampler(sampling)
        self.cached = 0  # tokens of prompt and answer that the model's cache holds
        self.last = -1  # the newest token, which the cache does not hold yet
        self.count = 0
        self.cancelled = False
        self.prompt_logprobs: list[Token] | None = None
        self.started: float | None = None  # time.perf_counter() when it left the queue
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[_Item] = asyncio.Queue()
        self._ending: _Ending | None = None

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> list[Token]:
        tokens: list[Token] = []
        while self._ending is None and not (tokens and self.items.empty()):
            item = await self.items.get()
            if isinstance(item, int):
                tokens.append(Token(item))
            else:
                self._ending = item
        if tokens:
            return tokens
        if isinstance(self._ending, EngineFailed):
            raise self._ending
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


class BatchingEngine:
    """An engine (engine.Engine) around a model that is stepped.

    Args:
        max_input_len: tokens of a prompt at most.
        max_queue: requests that may wait for a slot.
    """

    def __init__(self, model: StepModel, *, max_input_len: int, max_queue: int) -> None:
        self.max_input_len = max_input_len
        self.max_seq_len = model.max_seq_len
        self.features: frozenset[str] = frozenset()
        self._model = model
        self._max_queue = max_queue
        self._waiting: deque[Answer] = deque()
        self._joining: Answer | None = None
        self._active: list[Answer] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Answer:
        """See engine.Engine.generate.

        Raises:
            QueueFull: as many requests wait as may. EngineFailed: the engine is closed.
            ValueError: prompt and answer do not fit into max_seq_len.
        """
        if not 0 < len(prompt) <= self.max_seq_len - sampling.max_tokens or sampling.max_tokens < 1:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens do not fit")
        answer = Answer(prompt, sampling)
        with self._changed:
            if self._closing:
                raise EngineFailed("the server is shutting down")
            if len(self._waiting) >= self._max_queue:
                self._waiting = deque(a for a in self._waiting if not a.cancelled)
            if len(self._waiting) >= self._max_queue:
                raise QueueFull
            self._waiting.append(answer)
            self._changed.notify()
        return answer

    def down(self) -> str | None:
        return None

    def load(self) -> Load:
        active, joining = list(self._active), self._joining  # the engine's thread changes both
        busy = [*active, joining] if joining else active
        room = self._model.slots * self._model.max_seq_len
        return Load(len(busy), len(self._waiting), sum(a.cached for a in busy) / room)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._waiting or self._joining or self._active
                )
                if self._closing:
                    break
            try:
                self._drop_cancelled()
                self._read_prompts()
                self._add_tokens()
            except Exception as error:
                # The cache may be half written: everything in it is lost, what waits is not.
                self._fail(f"the engine failed: {type(error).__name__}: {error}")
        with self._changed:
            self._active += self._waiting
            self._waiting.clear()
        self._fail("the server is shutting down")

    def _drop_cancelled(self) -> None:
        if self._joining and self._joining.cancelled:
            self._joining = None
        for row in reversed(range(len(self._active))):
            if self._active[row].cancelled:
                self._free(row)

    def _read_prompts(self) -> None:
        budget, outgoing = PROMPT_TOKENS_PER_STEP, []
        while budget > 0 and (answer := self._next_to_join()):
            part = answer.prompt[answer.cached : answer.cached + budget]
            logits = self._model.prefill(len(self._active), part, answer.cached)
            answer.cached += len(part)
            budget -= len(part)
            if answer.cached == len(answer.prompt):
                self._joining = None
                outgoing.append((answer, self._choose(answer, logits[-1])))
                if not self._ended(answer):
                    self._active.append(answer)
        self._send(outgoing)

    def _next_to_join(self) -> Answer | None:
        """The request whose prompt is to be read, if there is one and a row for it."""
        while self._joining is None and len(self._active) < self._model.slots:
            with self._changed:
                if not self._waiting:
                    return None
                answer = self._waiting.popleft()
            if not answer.cancelled:
                answer.started = time.perf_counter()
                self._joining = answer
        return self._joining

    def _add_tokens(self) -> None:
        if not self._active:
            return
        lengths = [answer.cached + 1 for answer in self._active]
        logits = self._model.decode([answer.last for answer in self._active], lengths)
        outgoing = []
        for row, answer in enumerate(self._active):
            answer.cached += 1
            outgoing.append((answer, self._choose(answer, logits[row])))
        for row in reversed(range(len(self._active))):
            if self._ended(self._active[row]):
                self._free(row)
        self._send(outgoing)

    def _choose(self, answer: Answer, logits: "NDArray[np.float32]") -> int:
        answer.last = answer.sampler.choose(logits)
        answer.count += 1
        return answer.last

    def _ended(self, answer: Answer) -> bool:
        full = answer.count == answer.sampling.max_tokens
        return full or answer.last in answer.sampling.stop_ids

    def _free(self, row: int) -> None:
        """Give up a row; the last sequence moves there, so that rows in use stay the first ones."""
        last = self._active.pop()
        end = len(self._active)
        if row < end:
            self._model.move(end, row, last.cached)
            self._active[row] = last
        if self._joining and self._joining.cached:
            self._model.move(end + 1, end, self._joining.cached)

    def _send(self, outgoing: Sequence[tuple[Answer, int]]) -> None:
        """Hand tokens to the event loops that wait for them: one call for each loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answer, _Item]]] = {}
        for answer, token in outgoing:
            items = by_loop.setdefault(answer.loop, [])
            items.append((answer, token))
            if self._ended(answer):
                items.append((answer, _End()))
        for loop, items in by_loop.items():
            _deliver(loop, items)

    def _fail(self, message: str) -> None:
        lost = [*self._active, *([self._joining] if self._joining else [])]
        self._active, self._joining = [], None
        for answer in lost:
            _deliver(answer.loop, [(answer, EngineFailed(message))])


def _deliver(loop: asyncio.AbstractEventLoop, items: Sequence[tuple[Answer, _Item]]) -> None:
    def put() -> None:
        for answer, item in items:
            answer.items.put_nowait(item)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:  # the loop is closed: nobody reads any more
        for answer, _ in items:
            answer.cancel()
