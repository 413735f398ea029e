"""Continuous batching: requests join and leave between the steps of one running batch.

One thread owns the model. Each of its steps reads a bounded number of prompt tokens, so that long
prompts do not stall answers in progress, and then adds one token to every answer. Sequences in
progress occupy the model's first rows; the one whose prompt is being read is in the row after them.
"""

import threading
import time
from asyncio import shield, wrap_future
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engines.base import EngineFailed, Guide, Load, QueueFull, Sampling, Token
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.model_runner import FEATURES, AdaptedModel, StepModel
from pipeline.engines.batching.request import Answer, Ending, Item, deliver
from pipeline.engines.batching.sampling import Sampler, score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPT_TOKENS_PER_STEP = 512


class _Change:
    """Something to be done to the model between two steps.

    Args:
        unused: an adapter whose last answer it has to wait for.
    """

    def __init__(self, work: Callable[[], None], unused: str | None = None) -> None:
        self.work, self.unused = work, unused
        self.done: Future[None] = Future()


class BatchingEngine:
    """An engine (engine.Engine) around a model that is stepped; with adapters, if the model has.

    Args:
        max_input_len: tokens of a prompt at most.
        max_queue: requests that may wait for a slot.
        guides: for answers that must match something.
    """

    def __init__(
        self,
        model: StepModel | AdaptedModel,
        *,
        max_input_len: int,
        max_queue: int,
        guides: Guides | None = None,
    ) -> None:
        self.max_input_len = max_input_len
        self.max_seq_len = model.max_seq_len
        self._has_adapters = hasattr(model, "use_adapter")
        more = {"guide": guides is not None, "adapters": self._has_adapters}
        self.features = FEATURES | {name for name, has in more.items() if has}
        self._model: Any = model  # an AdaptedModel, if _has_adapters
        self._guides = guides
        self._max_queue, self.room = max_queue, model.slots + max_queue
        self._adapters: list[str] = []
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self._compiling: set[Answer] = set()  # they wait for their guide
        self._waiting: deque[Answer] = deque()
        self._joining: Answer | None = None
        self._active: list[Answer] = []
        self._changes: list[_Change] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Answer:
        """See engine.Engine.generate.

        Raises:
            QueueFull: as many requests wait as may. EngineFailed: the engine is closed.
            ValueError: prompt and answer do not fit into max_seq_len, or the engine lacks what is
                asked for.
        """
        if not 0 < len(prompt) <= self.max_seq_len - sampling.max_tokens or sampling.max_tokens < 1:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens do not fit")
        answer = Answer(prompt, sampling)
        with self._changed:
            if self._closing:
                raise EngineFailed("the server is shutting down")
            if sampling.adapter and sampling.adapter not in self._adapters:
                raise ValueError(f"there is no adapter {sampling.adapter!r}")
            if len(self._waiting) + len(self._compiling) >= self._max_queue:
                self._waiting = deque(a for a in self._waiting if not a.cancelled)
            if len(self._waiting) + len(self._compiling) >= self._max_queue:
                raise QueueFull
            if sampling.guide:
                if self._guides is None:
                    raise ValueError("this engine cannot guide answers")
                self._compiling.add(answer)
                self._compiler.submit(self._begin_guided, answer, self._guides, sampling.guide)
            else:
                self._waiting.append(answer)
                self._changed.notify()
        return answer

    def adapters(self) -> list[str]:
        return list(self._adapters)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """See engine.AdapterEngine.add_adapter; answers in progress wait meanwhile."""
        if any(change.unused == name for change in self._changes):
            raise ValueError(f"answers with the former {name!r} go on: load it when they end")
        await self._change(_Change(lambda: self._model.add_adapter(name, folder)))
        self._adapters.append(name)

    async def remove_adapter(self, name: str) -> None:
        """See engine.AdapterEngine.remove_adapter; returns when its last answer has ended."""
        with self._changed:
            self._adapters.remove(name)
        await self._change(_Change(lambda: self._model.remove_adapter(name), unused=name))

    def down(self) -> str | None:
        return None

    def load(self) -> Load:
        active, joining = list(self._active), self._joining  # the engine's thread changes both
        busy = [*active, joining] if joining else active
        room = self._model.slots * self._model.max_seq_len
        waiting = len(self._waiting) + len(self._compiling)
        return Load(len(busy), waiting, sum(a.cached for a in busy) / room)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._compiler.shutdown()
        self._thread.join()

    async def _change(self, change: _Change) -> None:
        with self._changed:
            if self._closing:
                raise EngineFailed("the server is shutting down")
            self._changes.append(change)
            self._changed.notify()
        await shield(wrap_future(change.done))  # it is made though whoever asked has left

    def _begin_guided(self, answer: Answer, guides: Guides, guide: Guide) -> None:
        """In a thread of its own: have a guide ready, then let the answer wait for a slot."""
        error: Ending | None = None
        try:
            answer.sampler = Sampler(answer.sampling, answer.prompt, guides.begin(guide))
        except ValueError as refused:
            error = refused
        except Exception as failed:
            error = EngineFailed(f"the answer's guide: {type(failed).__name__}: {failed}")
        with self._changed:
            self._compiling.remove(answer)
            if self._closing:
                error = EngineFailed("the server is shutting down")
            if error is None:
                self._waiting.append(answer)
            self._changed.notify()
        if error:
            deliver([(answer, error)])

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._has_work())
                if self._closing:
                    break
            try:
                self._drop_cancelled()
                self._make_changes()
                self._read_prompts()
                self._add_tokens()
            except Exception as error:
                # The cache may be half written: everything in it is lost, what waits is not.
                self._fail(f"the engine failed: {type(error).__name__}: {error}")
        with self._changed:
            self._active += self._waiting
            self._waiting.clear()
        self._fail("the server is shutting down")
        for change in self._changes:
            change.done.set_exception(EngineFailed("the server is shutting down"))

    def _drop_cancelled(self) -> None:
        if self._joining and self._joining.cancelled:
            self._joining = None
        for row in reversed(range(len(self._active))):
            if self._active[row].cancelled:
                self._free(row)

    def _has_work(self) -> bool:
        return bool(self._waiting or self._joining or self._active or self._due())

    def _due(self) -> list[_Change]:
        """Changes that no answer stands in the way of; self._changed is held."""
        joining = [self._joining] if self._joining else []
        busy = [*self._active, *joining, *self._waiting, *self._compiling]
        used = {answer.sampling.adapter for answer in busy}
        return [c for c in self._changes if c.unused is None or c.unused not in used]

    def _make_changes(self) -> None:
        with self._changed:
            due = self._due() if self._changes else []
            self._changes = [change for change in self._changes if change not in due]
        for change in due:
            try:
                change.work()
                change.done.set_result(None)
            except Exception as error:  # it is for whoever asked
                change.done.set_exception(error)

    def _read_prompts(self) -> None:
        budget, outgoing = PROMPT_TOKENS_PER_STEP, []
        try:
            while budget > 0 and (answer := self._next_to_join()):
                row = len(self._active)
                if self._has_adapters and answer.cached == 0:
                    self._model.use_adapter(row, answer.sampling.adapter)
                part = answer.prompt[answer.cached : answer.cached + budget]
                logits = self._model.prefill(row, part, answer.cached)
                answer.cached += len(part)
                budget -= len(part)
                if answer.sampling.prompt_logprobs:
                    _score_prompt(answer, logits)
                if answer.cached == len(answer.prompt):
                    outgoing += self._choose(answer, logits[-1])
                    self._joining = None
                    if not answer.ended:
                        self._active.append(answer)
        finally:
            deliver(outgoing)  # of prompts that were read before one at which the model failed

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
        outgoing: list[tuple[Answer, Item]] = []
        for row, answer in enumerate(self._active):
            answer.cached += 1
            outgoing += self._choose(answer, logits[row])
        for row in reversed(range(len(self._active))):
            if self._active[row].ended:
                self._free(row)
        deliver(outgoing)

    def _choose(self, answer: Answer, logits: "NDArray[np.float32]") -> list[tuple[Answer, Item]]:
        """What the answer's reader gets: its next token, and its end if that is the last."""
        try:
            token = answer.sampler.choose(logits)
        except (EngineFailed, ValueError) as error:  # this answer's alone
            answer.error = error
            return [(answer, error)]
        answer.last = token.id
        answer.count += 1
        return [(answer, token), *([(answer, StopAsyncIteration())] if answer.ended else [])]

    def _free(self, row: int) -> None:
        """Give up a row; the last sequence moves there, so that rows in use stay the first ones."""
        last = self._active.pop()
        end = len(self._active)
        if row < end:
            self._model.move(end, row, last.cached)
            self._active[row] = last
        if self._joining and self._joining.cached:
            self._model.move(end + 1, end, self._joining.cached)

    def _fail(self, message: str) -> None:
        lost = [*self._active, *([self._joining] if self._joining else [])]
        self._active, self._joining = [], None
        deliver([(answer, EngineFailed(message)) for answer in lost])


def _score_prompt(answer: Answer, logits: "NDArray[np.float32]") -> None:
    """Add log-probabilities of the prompt's tokens behind which the logits stand."""
    if answer.prompt_logprobs is None:
        answer.prompt_logprobs = [Token(answer.prompt[0])]
    end = answer.cached
    ids = answer.prompt[end - len(logits) + 1 : end + 1]  # the last part's last logits score none
    answer.prompt_logprobs += score(logits[: len(ids)], ids, answer.sampling.logprobs or 0)
