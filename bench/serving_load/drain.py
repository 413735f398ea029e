"""SIGTERM while streams are open."""

import argparse
import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import aiohttp

from bench.serving_load.client import ask, readiness, session
from pipeline.serving.server_process import RunningServer

MAX_TOKENS = 300
PROBE_SECONDS = 0.05


async def drain(server: RunningServer, given: argparse.Namespace) -> dict[str, Any]:
    """Passes if every stream completes, the server returns 503 until then, and it exits with 0."""
    ends: Counter[str] = Counter()
    ready: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    begun = 0

    def count() -> None:
        nonlocal begun
        begun += 1

    async def stream(http: aiohttp.ClientSession, number: int) -> None:
        how = {"max_tokens": MAX_TOKENS, "temperature": 2, "seed": number}
        ends[(await ask(http, server.url, begun=count, **how)).end] += 1

    async def probe(http: aiohttp.ClientSession) -> None:
        while True:
            with suppress(aiohttp.ClientError):
                ready[str(await readiness(http, server.url))] += 1
                refused[(await ask(http, server.url)).end] += 1
            await asyncio.sleep(PROBE_SECONDS)

    async with session(given.streams + 2) as http:
        streams = [asyncio.create_task(stream(http, n)) for n in range(given.streams)]
        while begun < given.streams:
            await asyncio.sleep(0.01)
        open_streams = sum(not task.done() for task in streams)
        os.kill(server.pid, signal.SIGTERM)
        begin = time.monotonic()
        await asyncio.sleep(PROBE_SECONDS)  # the signal reaches the process
        probing = asyncio.create_task(probe(http))
        await asyncio.gather(*streams)
        seconds = time.monotonic() - begin
        probing.cancel()
    # WNOWAIT leaves the process to its parent.
    ended = await asyncio.to_thread(os.waitid, os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    assert ended
    return {
        "streams": given.streams,
        "open_when_signalled": open_streams,
        "ends": dict(ends),
        "readiness_while_draining": dict(ready),
        "new_requests_while_draining": dict(refused),
        "seconds_until_the_last_stream_ended": round(seconds, 2),
        "exit_code": ended.si_status,
        "met": set(ends) <= {"stop", "length"}
        and sum(ends.values()) == given.streams
        and set(ready) == set(refused) == {"503"}
        and ended.si_status == 0,
    }
