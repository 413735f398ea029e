"""Prompts that begin like earlier ones: what is read of them, and with the same answer."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.base import Client, Sampling
from pipeline.engines.batching.prefixes import LEAST, _shared
from pipeline.engines.batching.scheduler import BatchingEngine
from tests.unit.engines.batching.test_scheduler import greedy
from tests.unit.serving.fake_models import ListModel, mix

SYSTEM = [i % 300 + 1 for i in range(200)]
ANNA, BEN = Client("anna", "1"), Client("ben", "1")


class Adapted(ListModel):
    """A model whose adapters change its tokens."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.adapters: list[str | None] = [None] * self.slots

    def use_adapter(self, row: int, name: str | None) -> None:
        self.adapters[row] = name

    def check_adapter(self, folder: Path) -> None: ...
    def add_adapter(self, name: str, folder: Path) -> None: ...
    def remove_adapter(self, name: str) -> None: ...


def expected(prompt: Sequence[int], tokens: int) -> list[int]:
    answer: list[int] = []
    for _ in range(tokens):
        answer.append(mix([*prompt, *answer]))
    return answer


def opened(model: Any = None, slots: int = 4) -> tuple[Any, BatchingEngine]:
    model = model or ListModel(mix, slots=slots, max_seq_len=512)
    return model, BatchingEngine(model, max_input_len=500, max_queue=100)


async def read(engine: BatchingEngine, prompt: list[int], sampling: Sampling) -> tuple[Any, Any]:
    stream = engine.generate(prompt, sampling)
    tokens = [token.id async for part in stream for token in part]
    assert tokens == expected(prompt, sampling.max_tokens)
    return stream.cached_tokens, tokens


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


@pytest.mark.parametrize("slots", [1, 4])
def test_a_repeated_beginning_is_not_read_again(slots: int) -> None:
    async def scenario() -> None:
        model, engine = opened(slots=slots)
        for number, cached in enumerate((0, 200, 200)):
            model.prompt_parts.clear()
            found, _ = await read(engine, [*SYSTEM, 301 + number, 7, 8], greedy(3))
            assert found == cached
            assert sum(model.prompt_parts) == 203 - cached
        engine.close()

    run(scenario())


def test_the_next_turn_finds_the_answer_too_and_the_same_prompt_reads_one_token() -> None:
    async def scenario() -> None:
        _, engine = opened()
        _, answer = await read(engine, SYSTEM, greedy(4))
        turn = [*SYSTEM, *answer, 5, 6]
        assert (await read(engine, turn, greedy(2)))[0] == len(SYSTEM) + 3  # all but the last
        assert (await read(engine, SYSTEM, greedy(2)))[0] == len(SYSTEM) - 1
        engine.close()

    run(scenario())


def test_a_running_sequence_lends_its_beginning() -> None:
    async def scenario() -> None:
        model, engine = opened(slots=2)
        model.gated = True
        first = engine.generate([*SYSTEM, 9], greedy(50))
        assert (await anext(first))[0].id == expected([*SYSTEM, 9], 1)[0]
        second = asyncio.create_task(read(engine, [*SYSTEM, 8], greedy(4)))
        await asyncio.sleep(0.01)
        model.gated = False
        model.gate.release(100)
        assert (await second)[0] == 200
        engine.close()

    run(scenario())


@pytest.mark.parametrize(("first", "second"), [
    ({"client": ANNA}, {"client": BEN}),
    ({"cache_salt": "a"}, {"cache_salt": "b"}),
    ({}, {"prompt_logprobs": 0}),
])  # fmt: skip
def test_what_others_asked_is_not_used(first: dict[str, Any], second: dict[str, Any]) -> None:
    async def scenario() -> None:
        _, engine = opened()
        assert (await read(engine, [*SYSTEM, 9], replace(greedy(3), **first)))[0] == 0
        assert (await read(engine, [*SYSTEM, 9], replace(greedy(3), **second)))[0] == 0
        assert (await read(engine, [*SYSTEM, 9], replace(greedy(3), **first)))[0] == 200
        engine.close()

    run(scenario())


def test_adapters_do_not_share_and_a_new_one_of_the_same_name_reads_anew() -> None:
    async def scenario() -> None:
        _, engine = opened(Adapted(mix, max_seq_len=512))
        await engine.add_adapter("tuned", Path())
        tuned = replace(greedy(2), adapter="tuned")
        for sampling, cached in ((greedy(2), 0), (tuned, 0), (tuned, 200), (greedy(2), 200)):
            assert (await read(engine, [*SYSTEM, 9], sampling))[0] == cached
        await engine.remove_adapter("tuned")
        await engine.add_adapter("tuned", Path())
        assert (await read(engine, [*SYSTEM, 9], tuned))[0] == 0
        engine.close()

    run(scenario())


def test_short_beginnings_are_read() -> None:
    async def scenario() -> None:
        _, engine = opened()
        for _ in range(2):
            assert (await read(engine, [*SYSTEM[: LEAST - 1], 9], greedy(2)))[0] == 0
        engine.close()

    run(scenario())


def test_answers_are_the_same_whatever_ends_in_whatever_order() -> None:
    """Beginnings of many lengths, in a few rows, with answers that are cut off."""

    async def scenario() -> None:
        chance = random.Random(1)
        _, engine = opened(slots=3)
        heads = [[chance.randrange(1, 390) for _ in range(90)] for _ in range(4)]
        cached = 0

        async def one() -> None:
            nonlocal cached
            await asyncio.sleep(chance.random() / 50)
            head = chance.choice(heads)[: chance.choice((40, 60, 90))]
            prompt = [*head, *(chance.randrange(1, 390) for _ in range(chance.randrange(1, 9)))]
            client = chance.choice((ANNA, BEN))
            sampling = replace(greedy(chance.randrange(1, 30)), client=client)
            if chance.random() < 0.3:
                stream = engine.generate(prompt, sampling)
                await anext(stream)
                stream.cancel()
                return
            found, _ = await read(engine, prompt, sampling)
            cached += found

        await asyncio.gather(*(one() for _ in range(90)))
        assert cached > 500
        assert engine.load()[:2] == (0, 0)
        engine.close()

    run(scenario())


@pytest.mark.parametrize("length", [0, 31, 32, 33, 64, 100])
def test_the_shared_length_is_exact(length: int) -> None:
    one, other = list(range(100)), [*range(length), *([-1] * (100 - length))]
    assert _shared(one, other) == (length if length >= LEAST else 0)
    assert _shared(one[:length], one) == (length if length >= LEAST else 0)
