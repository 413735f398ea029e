"""Continuous batching: requests join and leave between the steps of one running batch.

One thread owns the model. Each of its steps reads a bounded number of prompt tokens, so that long
prompts do not stall running sequences, and then adds one token to every running sequence. Running
sequences occupy the model's first rows; the one whose prompt is being read is in the row after
them.

With prompt lookup (prompt_lookup.py) a sequence that repeats itself is given several tokens in a
step: the model reads a draft of them at once, and those that it would have chosen are kept.

On a GPU the next step is launched before the host has seen the tokens of the last one, which stay
on the GPU: otherwise it would be idle while the host prepares a step.

A fault ends the request in whose work it happens, and no other: reading its prompt, choosing its
token, moving its row. If a step for all rows fails, each row's step is repeated alone.
"""

import threading
import time
from asyncio import shield, to_thread, wrap_future
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engines.base import (
    EngineFailed,
    Load,
    QueueFull,
    Sampling,
    Token,
    require_known_tokens,
)
from pipeline.engines.batching.gpu_sampling import Chosen, GpuLogits
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.model_runner import FEATURES, LoraModelRunner, ModelRunner
from pipeline.engines.batching.prefixes import Prefixes
from pipeline.engines.batching.request import Ending, Item, Request, deliver
from pipeline.engines.batching.sampling import Sampler, choose_all, score
from pipeline.engines.batching.turns import Turns

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

PROMPT_TOKENS_PER_STEP = 512  # unless the model has a number of its own
# A token whose log-probabilities are asked for counts as so many: all of the vocabulary is summed.
SCORED_COST = 8


@dataclass(frozen=True)
class _Flight:
    """A step that a GPU has been given: of these requests, one in each of the first rows."""

    requests: list[Request]
    chosen: Chosen


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
        speculative_tokens: that prompt lookup drafts for a sequence and step at most; 0 for none.
            Not for models whose tokens are chosen on a GPU.
    """

    def __init__(
        self,
        model: ModelRunner | LoraModelRunner,
        *,
        max_input_len: int,
        max_queue: int,
        guides: Guides | None = None,
        speculative_tokens: int = 0,
    ) -> None:
        self.max_input_len = max_input_len
        self.max_seq_len, self.vocab_size = model.max_seq_len, model.vocab_size
        self._has_adapters = hasattr(model, "use_adapter")
        more = {"guide": guides is not None, "adapters": self._has_adapters}
        self.features = FEATURES | {name for name, has in more.items() if has}
        self._model: Any = model  # an LoraModelRunner, if _has_adapters
        self._on_gpu = getattr(model, "on_gpu", False)  # a GpuModelRunner
        if speculative_tokens and self._on_gpu:
            raise ValueError("prompt lookup needs a model whose tokens are chosen on the CPU")
        self._speculative_tokens = speculative_tokens
        self._chosen_tokens: list[tuple[Request, Item]] = []  # that readers do not have yet
        self._flight: _Flight | None = None  # the step after the one that readers have
        self._guides = guides
        self._max_queue, self.room = max_queue, model.slots + max_queue
        self._adapters: list[str] = []
        self._compiling: list[Request] = []  # they wait for their guide
        self._waiting: list[Request] = []
        self._turns, self._guide_turns = Turns(), Turns()
        self._prefixes = Prefixes(model)
        self._joining: Request | None = None
        self._active: list[Request] = []
        self._changes: list[_Change] = []
        self._closing = False
        lock = threading.RLock()
        self._changed, self._guide_wanted = threading.Condition(lock), threading.Condition(lock)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()
        if guides:
            args = (guides,)
            threading.Thread(target=self._compile, args=args, name="guides", daemon=True).start()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Request:
        """See base.Engine.generate.

        Raises:
            QueueFull: the queue is full. EngineFailed: the engine is closed.
            ValueError: prompt and answer do not fit into max_seq_len, a token is not in the model's
                vocabulary, or the engine does not support the request.
        """
        if not 0 < len(prompt) <= self.max_seq_len - sampling.max_tokens or sampling.max_tokens < 1:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens do not fit")
        require_known_tokens(prompt, sampling, self.vocab_size)
        request = Request(prompt, sampling, self._speculative_tokens)
        with self._changed:
            if self._closing:
                raise EngineFailed("the server is shutting down")
            if sampling.adapter and sampling.adapter not in self._adapters:
                raise ValueError(f"there is no adapter {sampling.adapter!r}")
            if self._queued() >= self._max_queue:
                self._waiting = [asked for asked in self._waiting if not asked.cancelled]
                self._compiling = [asked for asked in self._compiling if not asked.cancelled]
            if self._queued() >= self._max_queue:
                raise QueueFull
            if sampling.guide and self._guides is None:
                raise ValueError("this engine does not support guided decoding")
            if sampling.guide:
                self._compiling.append(request)
                self._guide_wanted.notify()
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
        await to_thread(self._model.check_adapter, folder)  # meanwhile the others are answered
        await self._change(_Change(lambda: self._model.add_adapter(name, folder)))
        self._adapters.append(name)

    async def remove_adapter(self, name: str) -> None:
        """See base.AdapterEngine.remove_adapter; returns when its last request has ended."""
        with self._changed:
            self._adapters.remove(name)

        def remove() -> None:
            self._prefixes.forget(name)  # another adapter may get its name
            self._model.remove_adapter(name)

        await self._change(_Change(remove, unused=name))

    def down(self) -> str | None:
        """Why the engine cannot answer any more; None if it can."""
        return None if self._thread.is_alive() or self._closing else "the engine's loop has ended"

    def load(self) -> Load:
        active, joining = list(self._active), self._joining  # the engine's thread changes both
        busy = [*active, joining] if joining else active
        room = self._model.slots * self._model.max_seq_len
        return Load(len(busy), self._queued(), sum(a.cached for a in busy) / room)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
            self._guide_wanted.notify()
        self._thread.join()

    def _queued(self) -> int:
        return len(self._waiting) + len(self._compiling)

    async def _change(self, change: _Change) -> None:
        with self._changed:
            if self._closing:
                raise EngineFailed("the server is shutting down")
            self._changes.append(change)
            self._changed.notify()
        await shield(wrap_future(change.done))  # it is made even if the caller has gone

    def _compile(self, guides: Guides) -> None:
        """Runs in a thread of its own: have guides ready, so that their requests wait for a slot.

        Only as many as there are slots are ready at a time, because each may hold megabytes.
        """

        def ready() -> int:
            return sum(request.sampling.guide is not None for request in self._waiting)

        while True:
            with self._changed:
                self._guide_wanted.wait_for(
                    lambda: self._closing or (self._compiling and ready() < self._model.slots)
                )
                if self._closing:
                    return
                request = self._compiling[self._guide_turns.next(self._compiling, self._waiting)]
            if not request.cancelled:
                error = self._begin_guided(request, guides)
            with self._changed:
                if request not in self._compiling:  # the engine has closed
                    return
                self._compiling.remove(request)
                if not (request.cancelled or error):
                    self._waiting.append(request)
                self._changed.notify()
            if not request.cancelled and error:
                deliver([(request, error)])

    def _begin_guided(self, request: Request, guides: Guides) -> Ending | None:
        try:
            assert request.sampling.guide
            matching = guides.begin(request.sampling.guide)
            request.sampler = Sampler(request.sampling, request.prompt, matching)
        except BaseException as error:
            return _ending(error)
        return None

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
                if not self._active:
                    self._deliver()
            except BaseException as error:  # of this code, not of one request
                self._fail(f"the engine failed: {type(error).__name__}: {error}")
        with self._changed:
            self._active += [*self._waiting, *self._compiling]
            self._waiting, self._compiling = [], []
        self._fail("the server is shutting down")
        for change in self._changes:
            change.done.set_exception(EngineFailed("the server is shutting down"))

    def _drop_cancelled(self) -> None:
        if any(request.cancelled for request in self._active):
            self._land()
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
        if due:
            self._land()
        for change in due:
            try:
                change.work()
                change.done.set_result(None)
            except BaseException as error:  # the caller gets it
                change.done.set_exception(_ending(error))

    def _read_prompts(self) -> None:
        budget = getattr(self._model, "prompt_tokens_per_step", PROMPT_TOKENS_PER_STEP)
        outgoing: list[tuple[Request, Item]] = []
        if self._next_to_join():
            self._land()
        while budget > 0 and (request := self._next_to_join()):
            cost = 1 if request.sampling.prompt_logprobs is None else SCORED_COST
            size = min(max(1, budget // cost), len(request.prompt) - request.cached)
            budget -= size * cost
            try:
                outgoing += self._read(request, size)
            except BaseException as error:
                self._joining = None
                outgoing.append((request, _ending(error)))
        deliver(outgoing)

    def _read(self, request: Request, size: int) -> list[tuple[Request, Item]]:
        """Read the next `size` tokens of the joining request's prompt."""
        row = len(self._active)
        if request.cached == 0:
            self._prefixes.start(request, row, self._active)
            size = min(size, len(request.prompt) - request.cached)
            if self._has_adapters:
                self._model.use_adapter(row, request.sampling.adapter)
        part = request.prompt[request.cached : request.cached + size]
        rows: GpuLogits | Sequence[NDArray[np.float32]]
        if self._on_gpu and request.sampling.prompt_logprobs is None:
            rows = self._model.read(row, part, request.cached)
            self._deliver()
            request.cached += size
        else:
            logits = self._model.prefill(row, part, request.cached)
            request.cached += size
            if request.sampling.prompt_logprobs is not None:
                _score_prompt(request, logits)
            rows = [logits[-1]]
        if request.cached < len(request.prompt):
            return []
        chosen = self._take(request, self._chosen([request], rows)[0])
        self._joining = None
        if request.ended:
            self._keep(request, row, row + 1, stays=True)
        else:
            self._active.append(request)
        return chosen

    def _next_to_join(self) -> Request | None:
        """The request whose prompt is read next, if there is one and a free row."""
        if self._joining is None and len(self._active) < self._model.slots:
            with self._changed:
                self._waiting = [asked for asked in self._waiting if not asked.cancelled]
                if self._waiting:
                    index = self._turns.next(self._waiting, self._active)
                    self._joining = self._waiting.pop(index)
                    self._joining.started = time.perf_counter()
                    if self._compiling:
                        self._guide_wanted.notify()  # there is room for one more guide
        return self._joining

    def _add_tokens(self) -> None:
        if not self._active:
            return
        if self._on_gpu:
            self._add_tokens_on_gpu()
            return
        if self._speculative_tokens:
            drafts = [request.draft() for request in self._active]
            if any(drafts):
                self._add_drafted_tokens(drafts)
                return
        lengths = [request.cached + 1 for request in self._active]
        rows: Sequence[NDArray[np.float32] | EngineFailed]
        try:
            rows = self._model.decode([request.last for request in self._active], lengths)
        except BaseException:
            rows = list(self._decode_alone())
        self._chosen_tokens = self._taken(self._active, self._chosen(self._active, rows))
        self._free_ended()
        self._deliver()

    def _add_drafted_tokens(self, drafts: Sequence[list[int]]) -> None:
        """Add a token to each running sequence, and more where the draft of a sequence is right.

        Rows without a draft, and those below them, take a step together. Then each draft is read
        alone, unless that step has chosen another token than the draft begins with.
        """
        together = max((row + 1 for row, draft in enumerate(drafts) if not draft), default=0)
        requests = self._active[:together]
        rows: Sequence[NDArray[np.float32] | EngineFailed] = ()
        if requests:
            lengths = [request.cached + 1 for request in requests]
            try:
                rows = self._model.decode([request.last for request in requests], lengths)
            except BaseException:
                rows = list(islice(self._decode_alone(), together))
        self._chosen_tokens = self._taken(requests, self._chosen(requests, rows))
        for row, (request, draft) in enumerate(zip(self._active, drafts, strict=True)):
            right = 0
            if row < together:
                if not draft or request.error:
                    continue
                right = int(request.last == draft[0])
            if row >= together or (right and len(draft) > 1 and not request.ended):
                right += self._read_draft(row, request, draft[right:])
            assert request.lookup
            request.lookup.judge(len(draft), right)
        self._free_ended()
        self._deliver()

    def _read_draft(self, row: int, request: Request, draft: Sequence[int]) -> int:
        """Read a sequence's newest token with a draft, and take the tokens that the model chooses.

        Returns the number of right tokens of the draft.
        """
        try:
            logits = self._model.prefill(row, [request.last, *draft], request.cached)
        except BaseException as error:
            self._chosen_tokens += self._take(request, error)
            return 0
        right = 0
        for place, following in enumerate(logits):
            self._chosen_tokens += self._taken([request], self._chosen([request], [following]))
            if place == len(draft) or request.error or request.last != draft[place]:
                break
            right += 1
            if request.ended:
                break
        return right

    def _add_tokens_on_gpu(self) -> None:
        flight, self._flight = self._flight, None
        if flight is None:
            try:
                flight = self._launched(self._active, [request.last for request in self._active])
            except BaseException:
                rows = list(self._decode_alone())
                self._deliver()
                tokens = self._chosen(self._active, rows)
                self._chosen_tokens = self._taken(self._active, tokens)
                self._free_ended()
                return
        if self._may_run_ahead(flight):
            # What fails here fails again when the step is launched on its own.
            with suppress(Exception):
                self._flight = self._launched(flight.requests, flight.chosen.ids, ahead=1)
        self._deliver()
        self._chosen_tokens = self._taken(flight.requests, flight.chosen.tokens())
        if any(request.ended for request in flight.requests):
            self._land()
            self._free_ended()

    def _launched(
        self, requests: Sequence[Request], ids: "Sequence[int] | torch.Tensor", ahead: int = 0
    ) -> _Flight:
        """ahead: steps in flight, whose tokens are not counted as cached yet."""
        lengths = [request.cached + 1 + ahead for request in requests]
        rows = self._model.advance(ids, lengths)
        return _Flight([*requests], rows.begin([request.sampler for request in requests]))

    def _may_run_ahead(self, flight: _Flight) -> bool:
        """Whether the step after this one can be launched: nothing is known that would come
        between them, and all tokens are chosen on the GPU. A request that then ends with a stop
        token has had one step too many, which nobody reads."""
        full = len(self._active) == self._model.slots
        return (
            flight.requests == self._active
            and not self._joining
            and (full or not self._waiting)
            and not self._changes
            and not self._closing
            and not any(
                request.cancelled
                or request.sampler.on_host
                or request.count + 1 >= request.sampling.max_tokens
                for request in self._active
            )
        )

    def _land(self) -> None:
        """Take the tokens of the step that was launched ahead, if there is one."""
        flight, self._flight = self._flight, None
        if flight:
            self._chosen_tokens += self._taken(flight.requests, flight.chosen.tokens())
            self._free_ended()

    def _taken(
        self, requests: Sequence[Request], tokens: Sequence[Token | BaseException]
    ) -> list[tuple[Request, Item]]:
        """What readers get after a step of these requests."""
        outgoing: list[tuple[Request, Item]] = []
        for request, token in zip(requests, tokens, strict=True):
            if not request.ended:
                request.cached += 1
                outgoing += self._take(request, token)
        return outgoing

    def _free_ended(self) -> None:
        for row in reversed(range(len(self._active))):
            if self._active[row].ended:
                self._free(row)

    def _deliver(self) -> None:
        """Give readers the tokens of the last step. A GPU's next step has begun by then, so that
        it does not wait for this."""
        outgoing, self._chosen_tokens = self._chosen_tokens, []
        deliver(outgoing)

    def _decode_alone(self) -> "Iterator[NDArray[np.float32] | EngineFailed]":
        """Each running sequence's logits [vocabulary], or why its step fails."""
        for row, request in enumerate(self._active):
            try:
                yield self._model.prefill(row, [request.last], request.cached)[-1]
            except BaseException as error:
                yield EngineFailed(f"the engine failed: {type(error).__name__}: {error}")

    def _chosen(
        self,
        requests: Sequence[Request],
        rows: "GpuLogits | Sequence[NDArray[np.float32] | EngineFailed]",
    ) -> list[Token | BaseException]:
        """The next token of each request, or the error that ends it."""
        samplers = [request.sampler for request in requests]
        return rows.choose(samplers) if isinstance(rows, GpuLogits) else choose_all(samplers, rows)

    def _take(self, request: Request, token: Token | BaseException) -> list[tuple[Request, Item]]:
        """What the stream's reader gets: the next token, and the end if that is the last one."""
        if isinstance(token, BaseException):
            request.error = _ending(token)
            return [(request, request.error)]
        request.last = token.id
        request.answer.append(token.id)
        request.count += 1
        return [(request, token), *([(request, StopAsyncIteration())] if request.ended else [])]

    def _free(self, row: int) -> None:
        """Free a row; the last sequence moves there, so that rows in use stay the first ones."""
        after = len(self._active)  # where the joining sequence is
        is_last = row == after - 1 and not self._joining
        self._keep(self._active[row], row, after + bool(self._joining), stays=is_last)
        last = self._active.pop()
        while row < len(self._active) and not self._moved(last, len(self._active), row):
            last = self._active.pop()
        if row < len(self._active):
            self._active[row] = last
        joining = self._joining
        if joining and joining.cached and not self._moved(joining, after, len(self._active)):
            self._joining = None

    def _keep(self, request: Request, row: int, first_idle: int, *, stays: bool) -> None:
        """Keep an ended sequence for those that begin alike; a fault is nobody's."""
        try:
            self._prefixes.keep(request, row, first_idle, stays=stays)
        except Exception:
            self._prefixes.forget()

    def _moved(self, request: Request, source: int, target: int) -> bool:
        """Move a sequence to another row; if that fails, its request ends."""
        try:
            self._model.move(source, target, request.cached)
        except BaseException as error:
            deliver([(request, _ending(error))])
            return False
        return True

    def _fail(self, message: str) -> None:
        self._deliver()
        self._flight = None
        lost = [*self._active, *([self._joining] if self._joining else [])]
        self._active, self._joining = [], None
        self._prefixes.forget()
        deliver([(request, EngineFailed(message)) for request in lost])


def _ending(error: BaseException) -> EngineFailed | ValueError:
    """The error that a request's reader gets."""
    if isinstance(error, EngineFailed | ValueError):
        return error
    return EngineFailed(f"the engine failed: {type(error).__name__}: {error}")


def _score_prompt(request: Request, logits: "NDArray[np.float32]") -> None:
    """Add log-probabilities of the prompt's tokens to which the logits belong."""
    if request.prompt_logprobs is None:
        request.prompt_logprobs = [Token(request.prompt[0])]
    end = request.cached
    ids = request.prompt[
        end - len(logits) + 1 : end + 1
    ]  # the logits of the last token score nothing
    request.prompt_logprobs += score(logits[: len(ids)], ids, request.sampling.prompt_logprobs or 0)
