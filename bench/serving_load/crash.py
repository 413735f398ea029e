"""The engine's process is killed under load."""

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

import aiohttp
import psutil

from bench.serving_load.client import ask, readiness, session
from pipeline.serving.server_process import RunningServer

LOAD_SECONDS = 3.0  # seconds before the kill, and after the server is ready again
MOST_DOWN_SECONDS = 60
MAX_TOKENS = 64


async def crash(server: RunningServer, given: argparse.Namespace) -> dict[str, Any]:
    """Passes if the server is not ready immediately, every request in progress ends with an error
    in OpenAI's format, and the server recovers by itself and serves requests again."""
    phases: dict[str, Counter[str]] = {name: Counter() for name in ("before", "down", "after")}
    phase, over = "before", False

    async def connection(http: aiohttp.ClientSession) -> None:
        while not over:
            try:
                answer = await ask(http, server.url, max_tokens=MAX_TOKENS)
            except (aiohttp.ClientError, TimeoutError) as error:
                phases[phase][type(error).__name__] += 1
                continue
            phases[phase][answer.end] += 1
            await asyncio.sleep(answer.retry_after)

    async with session(given.connections + 1) as http:
        load = [asyncio.create_task(connection(http)) for _ in range(given.connections)]
        await asyncio.sleep(LOAD_SECONDS)
        (engine,) = psutil.Process(server.pid).children()
        phase = "down"
        engine.kill()
        killed = time.monotonic()
        while await readiness(http, server.url) == 200:
            await asyncio.sleep(0)
        noticed = time.monotonic() - killed
        while await readiness(http, server.url) != 200:
            assert time.monotonic() < killed + MOST_DOWN_SECONDS, "it does not recover"
            await asyncio.sleep(0.02)
        ready_again = time.monotonic() - killed
        phase = "after"
        await asyncio.sleep(LOAD_SECONDS)
        over = True
        await asyncio.gather(*load)
    answers = {"stop", "length", "429"}
    return {
        "connections": given.connections,
        "answers_by_end": {name: dict(counts) for name, counts in phases.items()},
        "not_ready_after_seconds": round(noticed, 4),
        "ready_again_after_seconds": round(ready_again, 2),
        "met": set(phases["before"]) <= answers
        and phases["down"]["error event"] > 0
        and set(phases["down"]) <= answers | {"error event", "500", "503"}
        and set(phases["after"])
        <= answers | {"503"}  # refused before the first byte, or ended with an error event
        and phases["after"]["stop"] + phases["after"]["length"] > 0,
    }
