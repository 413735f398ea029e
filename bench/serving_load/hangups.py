"""Many clients that close the connection during a long response."""

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

import aiohttp

from bench.serving_load.client import ask, body, gauges, session
from pipeline.serving.server_process import RunningServer

AT_ONCE = 64
MAX_TOKENS = 300
FREE_SECONDS = 30
# The last is reported by the engine, twice a second.
OF_SLOTS = "num_requests_running", "num_requests_waiting", "gpu_cache_usage_perc"


async def hangups(server: RunningServer, given: argparse.Namespace) -> dict[str, Any]:
    """Passes if afterwards every slot is free, its cache is empty, and all slots serve again."""
    gate = asyncio.Semaphore(AT_ONCE)
    statuses: Counter[str] = Counter()

    async def leave(number: int) -> None:
        # Each has its own connection, which is closed as by a browser's tab.
        async with (
            gate,
            aiohttp.ClientSession() as http,
            http.post(
                f"{server.url}/chat/completions",
                json=body(max_tokens=MAX_TOKENS, temperature=2, seed=number),
            ) as response,
        ):
            statuses[str(response.status)] += 1
            for _ in range(1 + 2 * (number % 12)):
                await response.content.readline()
            response.close()

    async with session(AT_ONCE) as http:
        before = await gauges(http, server.url)
        await asyncio.gather(*(leave(number) for number in range(given.clients)))
        begin = time.monotonic()
        now = await gauges(http, server.url)
        while any(now[name] for name in OF_SLOTS) and time.monotonic() < begin + FREE_SECONDS:
            await asyncio.sleep(0.005)
            now = await gauges(http, server.url)
        freed = time.monotonic() - begin
        lost = now["num_requests_running"] + now["num_requests_waiting"]
        slots = int(now["num_request_max"])
        answers = await asyncio.gather(*(ask(http, server.url) for _ in range(slots)))
    whole = sum(answer.end in ("stop", "length") for answer in answers)
    generated = now["generation_tokens_total"] - before["generation_tokens_total"]
    return {
        "clients": given.clients,
        "statuses": dict(statuses),
        "generated_tokens": generated,
        "tokens_if_none_had_left": f"up to {given.clients * MAX_TOKENS}",
        "all_slots_free_after_seconds": round(freed, 3),
        "slots": slots,
        "slots_lost": lost,
        "cache_use_afterwards": now["gpu_cache_usage_perc"],
        "whole_answers_afterwards": whole,
        "met": not lost and now["gpu_cache_usage_perc"] == 0 and whole == slots,
    }
