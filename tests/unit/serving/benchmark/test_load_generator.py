"""The load generator reads complete streams, however the network splits them."""

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from pipeline.serving.benchmark import load_generator


class Content:
    """What aiohttp gives of a body: parts cut anywhere."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def iter_any(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


@given(st.lists(st.text("ab\n", max_size=6).map(str.encode), max_size=12))
def test_split_lines_are_joined(parts: list[bytes]) -> None:
    async def read() -> list[bytes]:
        return [line async for line in load_generator._lines(Content(parts))]

    whole = b"".join(parts).split(b"\n")
    assert asyncio.run(read()) == (whole if whole[-1] else whole[:-1])
