"""Tokens that are pushed come out in order, together where nobody read between, then the end."""

import asyncio

import pytest

from pipeline.engines.base import EngineFailed, Token
from pipeline.engines.token_stream import PushedStream


def test_tokens_come_before_the_end_and_the_end_stays() -> None:
    async def scenario() -> None:
        stream = PushedStream(lambda: None)
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        stream.put([Token(1)])
        assert await reader == [Token(1)]
        stream.put([Token(2)])
        stream.put([Token(3)])
        stream.end(EngineFailed("gone"))
        stream.end()
        assert await anext(stream) == [Token(2), Token(3)]
        for _ in range(2):
            with pytest.raises(EngineFailed, match="gone"):
                await anext(stream)

    asyncio.run(scenario())


def test_cancelled_once_it_says_so_once_and_gives_no_more() -> None:
    async def scenario() -> None:
        told: list[bool] = []
        stream = PushedStream(lambda: told.append(True))
        stream.cancel()
        stream.cancel()
        stream.put([Token(1)])
        assert [tokens async for tokens in stream] == []
        assert told == [True]
        ended = PushedStream(lambda: told.append(True))
        ended.end()
        ended.cancel()
        assert told == [True]

    asyncio.run(scenario())
