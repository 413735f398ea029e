"""A load generator for OpenAI endpoints: streams requests concurrently and times their tokens.

Uses aiohttp because its parser is compiled: the client shares the machine with the server that it
measures. Suitable load tools (aiperf, guidellm) need many more packages.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.serving.benchmark.concurrency import send_all


@dataclass(frozen=True)
class TimedResponse:
    """One streamed response. first, last: seconds from the request to these tokens."""

    text: str
    tokens: int
    first: float
    last: float

    @property
    def per_token(self) -> float | None:
        """Mean seconds between tokens; None for a response of one token."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(frozen=True)
class Level:
    """The result of a load of `concurrency` requests at a time, in the order of the requests."""

    concurrency: int
    seconds: float
    answers: list[TimedResponse]


def run_load(base_url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int) -> Level:
    """Send chat completions, `concurrency` at a time, and wait for all of them.

    Args:
        base_url: such as http://127.0.0.1:8000/v1.
        bodies: requests to /chat/completions, without the fields for streaming.

    Raises:
        PipelineError: the server refused a request or failed during one.
    """
    return asyncio.run(_run_load(base_url, bodies, concurrency))


async def _run_load(base_url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int) -> Level:
    begin = time.perf_counter()
    answers = await send_all(base_url, bodies, concurrency, send_request)
    return Level(concurrency, time.perf_counter() - begin, answers)


async def send_request(session: Any, url: str, body: Mapping[str, Any]) -> TimedResponse:
    """Send one chat completion, streamed and timed.

    Args:
        session: an aiohttp.ClientSession.
        url: of /chat/completions.

    Raises:
        PipelineError: the server refused the request or failed during it.
    """
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    begin = time.perf_counter()
    first = last = 0.0
    parts: list[str] = []
    tokens = 0
    async with session.post(url, json=streamed) as response:
        if response.status != 200:
            raise PipelineError(f"{url} returned {response.status}: {await response.text()}")
        async for line in _lines(response.content):
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise PipelineError(f"{url} failed in its stream: {event['error']['message']}")
            if event["usage"]:
                tokens = event["usage"]["completion_tokens"]
            elif event["choices"][0]["delta"].get("role") is None:
                last = time.perf_counter() - begin
                first = first or last
                parts.append(event["choices"][0]["delta"].get("content", ""))
    return TimedResponse("".join(parts), tokens, first, last)


async def _lines(content: Any) -> AsyncIterator[bytes]:
    """Lines as they arrive, many for each wake-up; aiohttp's own iteration wakes up for each."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest
