"""Guides are tried out in processes of their own: limited, remembered, cancelled, in turns."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pipeline.engines.base import NOBODY, Client, Guide
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guides import checker as checking
from pipeline.serving.guides.checker import MOST_BYTES, GuideChecker
from tests.unit.model_folders import make_model_folder

# Seconds of work and hundreds of megabytes.
HARD = Guide("json_schema", json.dumps({"type": "integer", "multipleOf": 999_983}))
PLAIN = Guide("json_schema", json.dumps({"type": "object"}))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("checker"), "demo"))


@asynccontextmanager
async def opened(chat: Chat, **limits: Any) -> AsyncIterator[GuideChecker]:
    checker = GuideChecker(chat.tokenizer.to_str(), chat.stop_ids, **limits)
    try:
        yield checker
    finally:
        held = list(checker._idle)
        checker.close()
        assert all(process.ended for process in held)


def run(chat: Chat, scenario: Callable[[GuideChecker], Awaitable[None]], **limits: Any) -> None:
    async def all_of_it() -> None:
        async with opened(chat, **limits) as checker:
            await scenario(checker)

    asyncio.run(asyncio.wait_for(all_of_it(), 200))


def test_guides_are_returned_as_engines_take_them_and_refused_in_plain_words(chat: Chat) -> None:
    async def scenario(checker: GuideChecker) -> None:
        assert await checker.check(PLAIN, NOBODY) == PLAIN
        gbnf = await checker.check(Guide("grammar", 'root ::= "a"'), NOBODY)
        assert gbnf.kind == "lark"
        assert "start:" in gbnf.text
        for guide, words in {
            Guide("json_schema", '{"uniqueItems": true}'): "the schema uses uniqueItems",
            Guide("json_schema", '{"$ref": "#"}'): "no text can satisfy the schema",
            Guide("grammar", "root ::= (("): "not a grammar in Lark or GBNF",
            Guide("regex", "a" * MOST_BYTES + "a"): "the regular expression has 262145 characters",
        }.items():
            for _ in range(2):
                with pytest.raises(ValueError, match=words):
                    await checker.check(guide, NOBODY)
        assert len(checker._idle) == 1  # one process for all of them

    run(chat, scenario)


def test_a_guide_that_takes_too_long_is_refused_once_and_remembered(chat: Chat) -> None:
    async def scenario(checker: GuideChecker) -> None:
        begin = time.process_time()
        for _ in range(2):
            with pytest.raises(ValueError, match=r"takes more than .* s of processor time to prep"):
                await checker.check(HARD, NOBODY)
        assert await checker.check(PLAIN, NOBODY) == PLAIN
        assert time.process_time() - begin < 0.5  # of this process

    run(chat, scenario, cpu_seconds=0.3)


def test_a_guide_that_takes_too_much_memory_is_refused(chat: Chat) -> None:
    async def scenario(checker: GuideChecker) -> None:
        with pytest.raises(ValueError, match=r"takes more than .* MiB of memory to prepare"):
            await checker.check(HARD, NOBODY)
        assert await checker.check(PLAIN, NOBODY) == PLAIN

    run(chat, scenario, memory_bytes=8 << 20)


def test_a_guide_whose_client_has_left_ends_its_process(chat: Chat) -> None:
    async def scenario(checker: GuideChecker) -> None:
        await checker.check(PLAIN, NOBODY)
        (process,) = checker._idle
        hard = asyncio.create_task(checker.check(HARD, NOBODY))
        await asyncio.sleep(0.1)
        hard.cancel()
        while not process.ended:
            await asyncio.sleep(0.02)
        assert await checker.check(Guide("regex", "a"), NOBODY)

    run(chat, scenario)


def test_a_hard_guide_holds_up_nobody_else(chat: Chat) -> None:
    """Other guides of the same client wait for one another; another client's do not."""

    async def scenario(checker: GuideChecker) -> None:
        ended: list[str] = []
        started, release = threading.Event(), threading.Event()

        def work(process: Any, guide: Guide) -> Guide:
            started.set()
            release.wait(10)
            ended.append(guide.text)
            return guide

        checker._ask = work  # type: ignore[method-assign]
        many = [
            asyncio.create_task(checker.check(Guide("regex", f"many {i}"), Client("many", "1")))
            for i in range(6)
        ]
        while not started.is_set():
            await asyncio.sleep(0.01)
        one = asyncio.create_task(checker.check(Guide("regex", "one"), Client("one", "1")))
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*many, one)
        assert ended.index("one") <= checking.PROCESSES

    run(chat, scenario)
