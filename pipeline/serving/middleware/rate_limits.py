"""Limits of requests and tokens of each key, per minute and per day.

A window lasts one minute from its first request, and is counted in memory. A day is one in UTC
(daily_usage.py). A request is refused before it reaches the engine
if its key has no requests left, or fewer tokens than its prompt needs. If it fails before its first
token, its prompt's tokens are refunded. Generated tokens are charged when the response ends, so the
last response in a window may exceed the limit; the next window starts from zero.
"""

import math
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from pipeline.serving.keyring import Key
from pipeline.serving.middleware.daily_usage import DailyUsage, seconds_left


class RateLimited(Exception):
    """A key has reached a limit.

    Attributes:
        retry_after: seconds until the window ends, at least 1.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimiter:
    """The counters of all keys. usage: of the day; None: in memory."""

    def __init__(self, usage: DailyUsage | None = None) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._usage = usage or DailyUsage()

    def allowance(self, key: Key) -> "Allowance":
        return Allowance(self._limiter, key, self._usage)

    def close(self) -> None:
        self._usage.close()


class Allowance:
    """What one key has left of its window and its day. Without limits in the key there are none."""

    def __init__(self, limiter: FixedWindowRateLimiter, key: Key, usage: DailyUsage) -> None:
        self._limiter, self._name, self._usage = limiter, key.name, usage
        self._of_day = {"requests": key.requests_per_day, "tokens": key.tokens_per_day}
        self._prompt_tokens = 0
        self._charged = (0, 0.0)  # tokens of the prompt, and the end of the window they count in
        self._items: dict[str, RateLimitItem] = {}
        if key.requests_per_minute:
            self._items["requests"] = RateLimitItemPerMinute(key.requests_per_minute)
        if key.tokens_per_minute:
            self._items["tokens"] = RateLimitItemPerMinute(key.tokens_per_minute)

    async def count_request(self) -> None:
        """
        Raises:
            RateLimited: no request is left.
        """
        self._require_left_today("requests", 1)
        await self._charge("requests", 1)
        self._usage.count(self._name, requests=1)

    async def charge_prompt(self, tokens: int) -> None:
        """
        Raises:
            RateLimited: fewer tokens are left.
        """
        self._require_left_today("tokens", tokens)
        await self._charge("tokens", tokens)
        self._usage.count(self._name, tokens=tokens)
        self._prompt_tokens = tokens
        if "tokens" in self._items:
            self._charged = tokens, await self._window_end()

    async def refund_prompt(self) -> None:
        """Undo charge_prompt, unless its window has ended."""
        self._usage.count(self._name, tokens=-self._prompt_tokens)
        self._prompt_tokens = 0
        tokens, end = self._charged
        self._charged = (0, 0.0)
        if tokens and await self._window_end() == end:
            await self._limiter.hit(self._items["tokens"], "tokens", self._name, cost=-tokens)

    async def charge_completion(self, tokens: int) -> None:
        """Count generated tokens, even beyond the limit."""
        if tokens:
            self._usage.count(self._name, tokens=tokens)
        if tokens and "tokens" in self._items:
            await self._limiter.hit(self._items["tokens"], "tokens", self._name, cost=tokens)

    async def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit-* headers for the limits that the key has."""
        headers = {}
        for what, item in self._items.items():
            stats = await self._limiter.get_window_stats(item, what, self._name)
            headers[f"x-ratelimit-limit-{what}"] = str(item.amount)
            headers[f"x-ratelimit-remaining-{what}"] = str(max(0, stats.remaining))
            headers[f"x-ratelimit-reset-{what}"] = _duration(stats.reset_time - time.time())
        return headers

    def _require_left_today(self, what: str, amount: int) -> None:
        limit = self._of_day[what]
        used = getattr(self._usage.of(self._name), what)
        if limit is not None and used + amount > limit:
            text = "The budget is whole again at midnight UTC."
            if amount > limit:
                text = "The request alone is larger than the limit: please shorten it."
            raise RateLimited(
                f"Rate limit reached for key '{self._name}' on {what} per day: limit {limit}, "
                f"used {used}, requested {amount}. {text}",
                seconds_left(),
            )

    async def _window_end(self) -> float:
        stats = await self._limiter.get_window_stats(self._items["tokens"], "tokens", self._name)
        return stats.reset_time

    async def _charge(self, what: str, amount: int) -> None:
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
    """In OpenAI's format: 350ms, 12s, 1m0s."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
