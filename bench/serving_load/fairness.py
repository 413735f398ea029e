"""One client with as many answers as the server holds, and another client's single requests."""

import argparse
import asyncio
import statistics
import time
from typing import Any

import aiohttp

from bench.serving_load.client import ask, session
from pipeline.serving.server_process import RunningServer

MAX_TOKENS = 64
CHOICES = 16  # of each of the first client's requests
OTHER = "127.0.0.2"  # the second client's address
MOST_ANSWERS = 2.0  # that the second client may have to wait for


async def fairness(server: RunningServer, given: argparse.Namespace) -> dict[str, Any]:
    """Passes if the second client's requests wait about as long as one answer takes."""
    end = time.monotonic() + given.seconds
    outcomes: list[str] = []

    async def many(http: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            answer = await ask(http, server.url, max_tokens=MAX_TOKENS, n=CHOICES, ignore_eos=True)
            outcomes.append(answer.end)
            await asyncio.sleep(answer.retry_after)

    async def one() -> list[float]:
        waits = []
        connector = aiohttp.TCPConnector(local_addr=(OTHER, 0))
        async with aiohttp.ClientSession(connector=connector) as http:
            await asyncio.sleep(2)
            while time.monotonic() < end:
                answer = await ask(http, server.url, max_tokens=4, ignore_eos=True)
                if answer.first is not None:
                    waits.append(answer.first)
                await asyncio.sleep(0.5)
        return waits

    async with session(given.streams) as http:
        alone = await ask(http, server.url, max_tokens=MAX_TOKENS, ignore_eos=True)
        begin = time.monotonic()
        together = await ask(http, server.url, max_tokens=MAX_TOKENS, n=CHOICES, ignore_eos=True)
        answer_seconds = time.monotonic() - begin
        waits, *_ = await asyncio.gather(one(), *(many(http) for _ in range(given.streams)))
    longest = max(waits, default=given.seconds)
    return {
        "requests_of_the_first_client": given.streams,
        "choices_each": CHOICES,
        "first_token_alone_seconds": round(alone.first or 0, 3),
        "seconds_of_16_answers": round(answer_seconds, 3),
        "their_first_token_seconds": round(together.first or 0, 3),
        "outcomes_of_the_first_client": {end: outcomes.count(end) for end in sorted(set(outcomes))},
        "waits_of_the_second_client": {
            "count": len(waits),
            "median_seconds": round(statistics.median(waits), 3) if waits else None,
            "longest_seconds": round(longest, 3),
        },
        "met": bool(waits) and longest < MOST_ANSWERS * answer_seconds,
    }
