"""How much a key may still ask in this minute, of requests and of tokens; kept in memory.

A window is a minute from its first request. A request is refused before it costs anything: when its
key has no request left, or fewer tokens than its prompt has. One that is refused or fails later,
before its first token, gets its prompt's tokens back. An answer is paid when it ends, so the
last one in a window may run over the limit by its own length; the window's end forgets that.
"""

import math
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from pipeline.serving.keys import Key


class RateLimited(Exception):
    """A key has used up its minute. The message says of what; retry_after: seconds, one or more."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rates:
    """The windows of all keys."""

    def __init__(self) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def of(self, key: Key) -> "Allowance":
        return Allowance(self._limiter, key)


class Allowance:
    """What one key has left. Unlimited where the key says nothing."""

    def __init__(self, limiter: FixedWindowRateLimiter, key: Key) -> None:
        self._limiter, self._name = limiter, key.name
        self._taken = (0, 0.0)  # tokens of the prompt, and the end of the window they are from
        self._items: dict[str, RateLimitItem] = {}
        if key.requests_per_minute:
            self._items["requests"] = RateLimitItemPerMinute(key.requests_per_minute)
        if key.tokens_per_minute:
            self._items["tokens"] = RateLimitItemPerMinute(key.tokens_per_minute)

    async def take_request(self) -> None:
        """
        Raises:
            RateLimited: none is left.
        """
        await self._take("requests", 1)

    async def take_prompt(self, tokens: int) -> None:
        """
        Raises:
            RateLimited: fewer are left.
        """
        await self._take("tokens", tokens)
        if "tokens" in self._items:
            self._taken = tokens, await self._window_end()

    async def give_back_prompt(self) -> None:
        """Undo take_prompt, unless its window has ended."""
        tokens, end = self._taken
        self._taken = (0, 0.0)
        if tokens and await self._window_end() == end:
            await self._limiter.hit(self._items["tokens"], "tokens", self._name, cost=-tokens)

    async def pay_answer(self, tokens: int) -> None:
        """Count an answer's tokens, whether they are left or not."""
        if tokens and "tokens" in self._items:
            await self._limiter.hit(self._items["tokens"], "tokens", self._name, cost=tokens)

    async def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit-* of those that are limited."""
        shown = {}
        for what, item in self._items.items():
            stats = await self._limiter.get_window_stats(item, what, self._name)
            shown[f"x-ratelimit-limit-{what}"] = str(item.amount)
            shown[f"x-ratelimit-remaining-{what}"] = str(max(0, stats.remaining))
            shown[f"x-ratelimit-reset-{what}"] = _duration(stats.reset_time - time.time())
        return shown

    async def _window_end(self) -> float:
        stats = await self._limiter.get_window_stats(self._items["tokens"], "tokens", self._name)
        return stats.reset_time

    async def _take(self, what: str, amount: int) -> None:
        item = self._items.get(what)
        if item is None:
            return
        if await self._limiter.test(item, what, self._name, cost=amount):
            await self._limiter.hit(item, what, self._name, cost=amount)
            return
        stats = await self._limiter.get_window_stats(item, what, self._name)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        used = item.amount - max(0, stats.remaining)
        raise RateLimited(
            f"Rate limit reached for key '{self._name}' on {what} per minute: limit {item.amount}, "
            f"used {used}, requested {amount}. "
            + (
                f"Please try again in {wait}s."
                if amount <= item.amount
                else "The request alone is larger than the limit: please shorten it."
            ),
            wait,
        )


def _duration(seconds: float) -> str:
    """As OpenAI writes them: 350ms, 12s, 1m0s."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
