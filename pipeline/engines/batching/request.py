"""One request in a batching engine: its state, and the stream of its tokens."""

import asyncio
from collections.abc import Iterable, Sequence

from pipeline.engines.base import EngineFailed, Sampling, Token
from pipeline.engines.batching.prompt_lookup import PromptLookup
from pipeline.engines.batching.sampling import Sampler

# How a stream ends: normally, or with the error that its reader gets.
Ending = StopAsyncIteration | EngineFailed | ValueError
Item = Token | Ending


class Request:
    """A TokenStream (base.py); the engine's thread owns all of it except `items`.

    speculative_tokens: that are drafted for a step at most; 0 for none.
    """

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, speculative_tokens: int = 0
    ) -> None:
        self.prompt = list(prompt)
        self.sampling, self.client = sampling, sampling.client
        self.sampler = Sampler(sampling, self.prompt)
        self.cached = 0  # tokens of prompt and answer that the model's cache holds
        self.last = -1  # the newest token, which the cache does not hold yet
        self.count = 0
        self.lookup = PromptLookup(speculative_tokens) if speculative_tokens else None
        self.answer: list[int] = []
        self.cancelled = False
        self.error: EngineFailed | ValueError | None = None  # it has failed
        self.prompt_logprobs: list[Token] | None = None
        self.started: float | None = None  # time.perf_counter() when it left the queue
        self.cached_tokens = 0  # of the prompt, which were not read again
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self._ending: Ending | None = None

    def __aiter__(self) -> "Request":
        return self

    async def __anext__(self) -> list[Token]:
        tokens: list[Token] = []
        while self._ending is None and not (tokens and self.items.empty()):
            item = await self.items.get()
            if isinstance(item, Token):
                tokens.append(item)
            else:
                self._ending = item
        if tokens:
            return tokens
        assert self._ending is not None
        raise self._ending

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def drafts(self) -> tuple[int, int] | None:
        """Tokens that were drafted, and those of them that were right; None without drafts."""
        return (self.lookup.drafted, self.lookup.accepted) if self.lookup else None

    def draft(self) -> list[int]:
        """What may follow, to be read with the newest token; empty if nothing is to be tried."""
        if self.lookup is None:
            return []
        return self.lookup.draft(
            self.prompt, self.answer, self.sampling.max_tokens - self.count - 1
        )

    @property
    def tokens_read(self) -> list[int]:
        """The tokens of prompt and answer that the model's cache holds."""
        return [*self.prompt, *self.answer][: self.cached]

    @property
    def ended(self) -> bool:
        full = self.count == self.sampling.max_tokens
        return full or self.last in self.sampling.stop_ids or self.error is not None


def deliver(items: Iterable[tuple[Request, Item]]) -> None:
    """Pass items to the event loops that wait for them, with one call for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Item]]] = {}
    for request, item in items:
        by_loop.setdefault(request.loop, []).append((request, item))
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, waiting)
        except RuntimeError:  # the loop is closed: there is no reader
            for request, _ in waiting:
                request.cancel()


def _put(items: Sequence[tuple[Request, Item]]) -> None:
    for request, item in items:
        request.items.put_nowait(item)
