"""Many connections for minutes, each of which sends requests without a pause."""

import argparse
import asyncio
import statistics
import time
from collections import Counter
from typing import Any

import aiohttp

from bench.serving_load.client import ask, in_progress, memory_mib, session
from pipeline.serving.server_process import RunningServer

MAX_TOKENS = 64
SAMPLES = 60  # of the server's memory
FILLING = 0.1  # of the time, in which caches and the buffers of all connections fill
MOST_GROWTH = 0.05  # of memory, from the first to the second half of the rest


async def flood(server: RunningServer, given: argparse.Namespace) -> dict[str, Any]:
    """Passes if all refusals are 429, no request is left at the end, and memory does not grow."""
    outcomes: Counter[str] = Counter()
    firsts: list[float] = []
    memory: list[tuple[float, float]] = []
    tokens = 0
    begin = time.monotonic()
    end = begin + given.seconds

    async def connection(http: aiohttp.ClientSession) -> None:
        nonlocal tokens
        while time.monotonic() < end:
            try:
                answer = await ask(http, server.url, max_tokens=MAX_TOKENS)
            except (aiohttp.ClientError, TimeoutError) as error:
                outcomes[type(error).__name__] += 1
                continue
            outcomes[answer.end] += 1
            tokens += answer.tokens
            if answer.first is not None:
                firsts.append(answer.first)
            await asyncio.sleep(answer.retry_after)

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append((round(time.monotonic() - begin, 1), memory_mib(server.pid)))
            await asyncio.sleep(given.seconds / SAMPLES)

    async with session(given.connections) as http:
        await asyncio.gather(watch(), *(connection(http) for _ in range(given.connections)))
        seconds = time.monotonic() - begin
        left = await in_progress(http, server.url)
    settled = [mib for at, mib in memory if at > FILLING * given.seconds]
    half = len(settled) // 2
    growth = statistics.median(settled[half:]) / statistics.median(settled[:half]) - 1
    return {
        "connections": given.connections,
        "seconds": round(seconds, 1),
        "outcomes": dict(outcomes),
        "output_tokens_per_second": round(tokens / seconds, 1),
        "first_token_seconds": {
            "median": round(statistics.median(firsts), 3),
            "p99": round(statistics.quantiles(firsts, n=100)[98], 3),
        },
        "memory_growth_second_half": round(growth, 4),
        "in_progress_afterwards": left,
        "met": set(outcomes) <= {"stop", "length", "429"} and growth < MOST_GROWTH and not left,
        "memory_mib": memory,
    }
