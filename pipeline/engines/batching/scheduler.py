"""Continuous batching: requests join and leave between the steps of one running batch.

One thread owns the model. Each of its steps reads a bounded number of prompt tokens, so that long
prompts do not stall running sequences, and then adds one token to every running sequence. Running
sequences occupy the model's first rows; the one whose prompt is being read is in the row after
them.
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
from pipeline.engines.batching.model_runner import FEATURES, LoraModelRunner, ModelRunner
from pipeline.engines.batching.request import Ending, Item, Request, deliver
from pipeline.engines.batching.sampling import Sampler, score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPT_TOKENS_PER_STEP = 512


class _Change:
    """A change to the model that is made between two steps.

    Args:
        unused: an adapter that no request may be using when the change is made.
    """

    def __init__(self, work: Callable[[], None], unused: str | None = None) -> None:
        self.work, self.unused = work, unused
        self.done: Future[None] = Future()


class BatchingEngine:
    """An engine (base.Engine) around a model that runs step by step; has adapters if the model has.

    Args:
        max_input_len: tokens of a prompt at most.
        max_queue: requests that may wait for a slot.
        guides: for guided decoding.
    """

    def __init__(
        self,
        model: ModelRunner | LoraModelRunner,
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
        self._model: Any = model  # an LoraModelRunner, if _has_adapters
        self._guides = guides
        self._max_queue, self.room = max_queue, model.slots + max_queue
        self._adapters: list[str] = []
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self._compiling: set[Request] = set()  # they wait for their guide
        self._waiting: deque[Request] = deque()
        self._joining: Request | None = None
        self._active: list[Request] = []
        self._changes: list[_Change] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Request:
        """See base.Engine.generate.

        Raises:
            QueueFull: the queue is full. EngineFailed: the engine is closed.
            ValueError: prompt and answer do not fit into max_seq_len, or the engine does not
                support the request.
        """
        if not 0 < len(prompt) <= self.max_seq_len - sampling.max_tokens or sampling.max_tokens < 1:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens do not fit")
        request = Request(prompt, sampling)
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
                    raise ValueError("this engine does not support guided decoding")
                self._compiling.add(request)
                self._compiler.submit(self._begin_guided, request, self._guides, sampling.guide)
            else:
                self._waiting.append(request)
                self._changed.notify()
        return request

    def adapters(self) -> list[str]:
        return list(self._adapters)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """See base.AdapterEngine.add_adapter; running sequences wait until it is loaded."""
        if any(change.unused == name for change in self._changes):
            raise ValueError(
                f"requests still use the former {name!r}: load it when they have ended"
            )
        await self._change(_Change(lambda: self._model.add_adapter(name, folder)))
        self._adapters.append(name)

    async def remove_adapter(self, name: str) -> None:
        """See base.AdapterEngine.remove_adapter; returns when its last request has ended."""
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
        await shield(wrap_future(change.done))  # it is made even if the caller has gone

    def _begin_guided(self, request: Request, guides: Guides, guide: Guide) -> None:
        """Runs in a thread of its own: have a guide ready, then let the request wait for a slot."""
        error: Ending | None = None
        try:
            request.sampler = Sampler(request.sampling, request.prompt, guides.begin(guide))
        except ValueError as refused:
            error = refused
        except Exception as failed:
            error = EngineFailed(f"guided decoding failed: {type(failed).__name__}: {failed}")
        with self._changed:
            self._compiling.remove(request)
            if self._closing:
                error = EngineFailed("the server is shutting down")
            if error is None:
                self._waiting.append(request)
            self._changed.notify()
        if error:
            deliver([(request, error)])

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
                # The cache may be half written: running sequences are lost, waiting ones are not.
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
        """Changes that can be made now; the caller holds self._changed."""
        joining = [self._joining] if self._joining else []
        busy = [*self._active, *joining, *self._waiting, *self._compiling]
        used = {request.sampling.adapter for request in busy}
        return [c for c in self._changes if c.unused is None or c.unused not in used]

    def _make_changes(self) -> None:
        with self._changed:
            due = self._due() if self._changes else []
            self._changes = [change for change in self._changes if change not in due]
        for change in due:
            try:
                change.work()
                change.done.set_result(None)
            except Exception as error:  # the caller gets it
                change.done.set_exception(error)

    def _read_prompts(self) -> None:
        budget, outgoing = PROMPT_TOKENS_PER_STEP, []
        try:
            while budget > 0 and (request := self._next_to_join()):
                row = len(self._active)
                if self._has_adapters and request.cached == 0:
                    self._model.use_adapter(row, request.sampling.adapter)
                part = request.prompt[request.cached : request.cached + budget]
                logits = self._model.prefill(row, part, request.cached)
                request.cached += len(part)
                budget -= len(part)
                if request.sampling.prompt_logprobs:
                    _score_prompt(request, logits)
                if request.cached == len(request.prompt):
                    outgoing += self._choose(request, logits[-1])
                    self._joining = None
                    if not request.ended:
                        self._active.append(request)
        finally:
            deliver(outgoing)  # also what was read before the model failed

    def _next_to_join(self) -> Request | None:
        """The request whose prompt is read next, if there is one and a free row."""
        while self._joining is None and len(self._active) < self._model.slots:
            with self._changed:
                if not self._waiting:
                    return None
                request = self._waiting.popleft()
            if not request.cancelled:
                request.started = time.perf_counter()
                self._joining = request
        return self._joining

    def _add_tokens(self) -> None:
        if not self._active:
            return
        lengths = [request.cached + 1 for request in self._active]
        logits = self._model.decode([request.last for request in self._active], lengths)
        outgoing: list[tuple[Request, Item]] = []
        for row, request in enumerate(self._active):
            request.cached += 1
            outgoing += self._choose(request, logits[row])
        for row in reversed(range(len(self._active))):
            if self._active[row].ended:
                self._free(row)
        deliver(outgoing)

    def _choose(
        self, request: Request, logits: "NDArray[np.float32]"
    ) -> list[tuple[Request, Item]]:
        """What the stream's reader gets: the next token, and the end if that is the last one."""
        try:
            token = request.sampler.choose(logits)
        except (EngineFailed, ValueError) as error:  # of this request only
            request.error = error
            return [(request, error)]
        request.last = token.id
        request.count += 1
        return [(request, token), *([(request, StopAsyncIteration())] if request.ended else [])]

    def _free(self, row: int) -> None:
        """Free a row; the last sequence moves there, so that rows in use stay the first ones."""
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
        deliver([(request, EngineFailed(message)) for request in lost])


def _score_prompt(request: Request, logits: "NDArray[np.float32]") -> None:
    """Add log-probabilities of the prompt's tokens to which the logits belong."""
    if request.prompt_logprobs is None:
        request.prompt_logprobs = [Token(request.prompt[0])]
    end = request.cached
    ids = request.prompt[
        end - len(logits) + 1 : end + 1
    ]  # the logits of the last token score nothing
    request.prompt_logprobs += score(logits[: len(ids)], ids, request.sampling.logprobs or 0)
