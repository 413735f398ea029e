"""Sends requests to a server, so many at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.core.errors import PipelineError

TIMEOUT_SECONDS = 600  # of an answer, as serve.request_timeout
T = TypeVar("T")


async def send_all(
    base_url: str,
    bodies: Sequence[Mapping[str, Any]],
    concurrency: int,
    send: Callable[[Any, str, Mapping[str, Any]], Awaitable[T]],
) -> list[T]:
    """What `send` returns for each body, in their order.

    Args:
        base_url: such as http://127.0.0.1:8000/v1.
        bodies: requests to /chat/completions.
        send: takes an aiohttp.ClientSession, the URL and a body.

    Raises:
        PipelineError: the server did not respond.
    """
    import aiohttp

    answers: dict[int, T] = {}
    left = iter(enumerate(bodies))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
    ) as session:

        async def work() -> None:
            for index, body in left:
                answers[index] = await send(session, f"{base_url}/chat/completions", body)

        try:
            await asyncio.gather(*(work() for _ in range(concurrency)))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PipelineError(
                f"the server at {base_url} did not respond ({type(error).__name__}: {error}): "
                "check its log and that it is still running"
            ) from error
    return [answers[number] for number in range(len(bodies))]
