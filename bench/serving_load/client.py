"""A client that streams one response, and reads the server's metrics, health and memory."""

import json
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
import psutil

MODEL = "bank"
QUESTIONS = [
    f"What does it cost to {what}?"
    for what in ("wire money", "open an account", "replace a card", "get a loan", "close it")
]
TIMEOUT_SECONDS = 300


class Response(NamedTuple):
    """One response.

    Attributes:
        end: OpenAI's finish reason; `error event` if the stream ended with an error; `cut` if it
            ended without; or the status of a refusal.
        first: seconds to the first text; None without text.
        retry_after: seconds in the refusal's Retry-After.
    """

    end: str
    first: float | None = None
    tokens: int = 0
    retry_after: float = 0


def session(connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
    )


def body(**given: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": random.choice(QUESTIONS)}]
    options = {"include_usage": True}
    streamed = {"stream": True, "stream_options": options}
    return {"model": MODEL, "messages": messages, **streamed, **given}


async def ask(
    http: aiohttp.ClientSession, url: str, *, begun: Callable[[], None] | None = None, **given: Any
) -> Response:
    """Stream one chat completion to its end.

    Args:
        begun: called at its first event.

    Raises:
        aiohttp.ClientError: the connection was lost.
        KeyError, ValueError: an error or an event is not in OpenAI's format.
    """
    start = time.monotonic()
    end, first, tokens = "cut", None, 0
    async with http.post(f"{url}/chat/completions", json=body(**given)) as response:
        if response.status != 200:
            assert json.loads(await response.read())["error"]["message"]
            wait = float(response.headers.get("Retry-After", 0))
            return Response(str(response.status), retry_after=wait)
        reason = None
        async for line in response.content:
            if begun:
                begun()
                begun = None
            if line == b"data: [DONE]\n" and reason:
                end = reason
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                assert event["error"]["message"]
                return Response("error event", first, tokens)
            if event["usage"]:
                tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                reason = choice["finish_reason"] or reason
                if choice["delta"].get("content") and first is None:
                    first = time.monotonic() - start
    return Response(end, first, tokens)


async def gauges(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """The server's metrics by name, one value for each."""
    async with http.get(f"{url}/metrics") as response:
        lines = [s.rsplit(" ", 1) for s in (await response.text()).splitlines() if s[0] != "#"]
    return {name.partition("{")[0]: float(value) for name, value in lines}


async def in_progress(http: aiohttp.ClientSession, url: str) -> float:
    """Number of sequences that run or wait."""
    now = await gauges(http, url)
    return now["num_requests_running"] + now["num_requests_waiting"]


async def readiness(http: aiohttp.ClientSession, url: str) -> int:
    """The status of /health/ready."""
    async with http.get(f"{url}/health/ready") as response:
        return response.status


def memory_mib(pid: int) -> float:
    """Resident memory of a process and its children, such as the engine's process."""
    process = psutil.Process(pid)
    processes = [process, *process.children(recursive=True)]
    return round(sum(p.memory_info().rss for p in processes) / 2**20, 1)
