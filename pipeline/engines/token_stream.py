"""The tokens of an answer: one side puts them, the other side reads them."""

import asyncio
from collections.abc import Callable, Sequence

from pipeline.engines.base import NOBODY, Client, Token


class PushedStream:
    """The tokens of one answer (base.TokenStream); used in one event loop.

    Args:
        on_cancel: called once if the answer is cancelled before its end.

    Attributes:
        client: who asked. begun: whether it has had a token.
    """

    def __init__(self, on_cancel: Callable[[], None], client: Client = NOBODY) -> None:
        self.client, self.begun = client, False
        self.prompt_logprobs: list[Token] | None = None
        self.started: float | None = None  # time.perf_counter() when it left the queue
        self.cached_tokens: int | None = None  # of the prompt, which were not read again
        self.drafts: tuple[int, int] | None = None  # drafted tokens, and the right ones of them
        self._on_cancel = on_cancel
        self._tokens: list[Token] = []
        self._ending: Exception | None = None
        self._news = asyncio.Event()

    def __aiter__(self) -> "PushedStream":
        return self

    async def __anext__(self) -> list[Token]:
        if not self._tokens and self._ending is None:
            await self._news.wait()
        self._news.clear()
        if self._tokens:
            tokens, self._tokens = self._tokens, []
            return tokens
        raise self._ending or StopAsyncIteration

    def put(self, tokens: Sequence[Token]) -> None:
        """Add new tokens; ignored once the answer has ended."""
        if self._ending is None:
            self.begun = True
            self._tokens += tokens
            self._news.set()

    def end(self, error: Exception | None = None) -> None:
        """End the answer; the reader gets `error` after the last token, if there is one."""
        if self._ending is None:
            self._ending = error or StopAsyncIteration()
            self._news.set()

    def revoke(self, error: Exception) -> None:
        """Cancel the answer, whose reader gets `error`."""
        if self._ending is None:
            self.end(error)
            self._on_cancel()

    def cancel(self) -> None:
        if self._ending is None:
            self.end()
            self._on_cancel()
