"""Continuous batching: every answer is the one it would be alone, whoever joins and leaves."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.serving import batching
from pipeline.serving.batching import BatchingEngine
from pipeline.serving.engine import EngineFailed, QueueFull, Sampling
from tests.unit.serving.models import ListModel, mix


def greedy(max_tokens: int, stop_ids: Sequence[int] = ()) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0, stop_ids=frozenset(stop_ids))


def alone(prompt: Sequence[int], how: Sampling) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < how.max_tokens:
        tokens.append(mix([*prompt, *tokens]))
        if tokens[-1] in how.stop_ids:
            break
    return tokens


async def read(engine: BatchingEngine, prompt: Sequence[int], how: Sampling) -> list[int]:
    return [token.id async for tokens in engine.generate(prompt, how) for token in tokens]


def wait_for(condition: Callable[[], object], stepping: ListModel | None = None) -> None:
    """Wait until it is so, letting a gated model go on step by step."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        if stepping:
            stepping.gate.release()
        time.sleep(0.005)


@pytest.fixture
def model() -> ListModel:
    return ListModel(mix)


@pytest.fixture
def engine(model: ListModel) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(model, max_input_len=60, max_queue=100)
    yield engine
    model.gated = False
    model.gate.release(1000)
    engine.close()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 390), min_size=1, max_size=40),
            st.integers(1, 20),
            st.sets(st.integers(0, 390), max_size=60),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
    st.sampled_from([3, 16, 512]),
)
def test_answers_do_not_depend_on_who_else_is_answered(
    requests: list[tuple[list[int], int, set[int], int]], slots: int, part: int
) -> None:
    async def run() -> None:
        engine = BatchingEngine(ListModel(mix, slots=slots), max_input_len=60, max_queue=100)

        async def ask(prompt: list[int], how: Sampling, hops: int) -> list[int]:
            for _ in range(hops):
                await asyncio.sleep(0.0005)
            return await read(engine, prompt, how)

        try:
            hows = [greedy(limit, stops) for _, limit, stops, _ in requests]
            asked = [
                ask(prompt, how, hops)
                for (prompt, _, _, hops), how in zip(requests, hows, strict=True)
            ]
            answers = await asyncio.gather(*asked)
            prompts = [prompt for prompt, *_ in requests]
            assert answers == [alone(p, how) for p, how in zip(prompts, hows, strict=True)]
            assert engine.load()[:2] == (0, 0)
        finally:
            engine.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "PROMPT_TOKENS_PER_STEP", part)
        asyncio.run(run())


def test_a_request_joins_the_running_batch(engine: BatchingEngine, model: ListModel) -> None:
    model.gated = True

    async def run() -> None:
        first = asyncio.create_task(read(engine, [1, 2], greedy(8)))
        await asyncio.sleep(0)
        wait_for(lambda: engine.load().running == 1)
        model.gate.release(2)
        wait_for(lambda: len(model.batches) == 2)
        second = asyncio.create_task(read(engine, [3], greedy(3)))
        await asyncio.sleep(0)
        wait_for(lambda: engine.load().waiting == 1)
        model.gate.release(100)
        assert await first == alone([1, 2], greedy(8))
        assert await second == alone([3], greedy(3))

    asyncio.run(run())
    assert model.batches[:2] == [1, 1]
    assert 2 in model.batches


def test_a_long_prompt_is_read_in_parts_between_steps(
    engine: BatchingEngine, model: ListModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "PROMPT_TOKENS_PER_STEP", 10)
    prompt = list(range(45))
    assert asyncio.run(read(engine, prompt, greedy(3))) == alone(prompt, greedy(3))
    assert model.prompt_parts == [10, 10, 10, 10, 5]


def test_a_cancelled_answer_frees_its_slot_while_others_go_on(
    engine: BatchingEngine, model: ListModel
) -> None:
    model.gated = True

    async def run() -> None:
        left = engine.generate([9], greedy(40))
        stays = asyncio.create_task(read(engine, [5, 5], greedy(12)))
        assert (await anext(left))[0].id == mix([9])
        wait_for(lambda: engine.load().running == 2, model)
        left.cancel()
        model.gate.release(100)
        assert await stays == alone([5, 5], greedy(12))

    asyncio.run(run())
    wait_for(lambda: engine.load()[:2] == (0, 0))
    assert sum(model.batches) < 20


def test_a_cancelled_request_in_the_queue_is_never_read(
    engine: BatchingEngine, model: ListModel
) -> None:
    model.gated = True

    async def run() -> None:
        busy = [asyncio.create_task(read(engine, [i + 1], greedy(40))) for i in range(4)]
        await asyncio.sleep(0)
        wait_for(lambda: engine.load().running == 4, model)
        engine.generate([1, 2, 3, 4, 5], greedy(5)).cancel()
        model.gate.release(1000)
        await asyncio.gather(*busy)

    asyncio.run(run())
    wait_for(lambda: engine.load()[:2] == (0, 0))
    assert 5 not in model.prompt_parts


def test_a_full_queue_refuses_until_one_leaves_it(model: ListModel) -> None:
    model.gated = True
    engine = BatchingEngine(model, max_input_len=60, max_queue=2)

    async def run() -> None:
        engine.generate([1], greedy(5))
        wait_for(lambda: engine.load()[:2] == (1, 0))
        waiting = [engine.generate([1], greedy(5)) for _ in range(2)]
        with pytest.raises(QueueFull):
            engine.generate([1], greedy(5))
        waiting[0].cancel()
        engine.generate([1], greedy(5))
        with pytest.raises(QueueFull):
            engine.generate([1], greedy(5))

    asyncio.run(run())
    model.gate.release(1000)
    engine.close()


def test_a_failing_model_fails_what_it_answers_and_then_goes_on(
    engine: BatchingEngine, model: ListModel
) -> None:
    async def run() -> None:
        model.error = MemoryError("too large")
        with pytest.raises(EngineFailed, match="MemoryError: too large"):
            await read(engine, [1], greedy(5))
        assert await read(engine, [1], greedy(5)) == alone([1], greedy(5))

    asyncio.run(run())


def test_closing_ends_every_answer(model: ListModel) -> None:
    model.gated = True
    engine = BatchingEngine(model, max_input_len=60, max_queue=9)

    async def run() -> None:
        asked = [asyncio.create_task(read(engine, [1], greedy(40))) for _ in range(6)]
        await asyncio.sleep(0)
        wait_for(lambda: engine.load()[:2] == (4, 2), model)
        model.gate.release(1000)
        engine.close()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(end, EngineFailed | list) for end in ends)
        assert any(isinstance(end, EngineFailed) for end in ends)
        with pytest.raises(EngineFailed, match="shutting down"):
            engine.generate([1], greedy(1))

    asyncio.run(run())


@pytest.mark.parametrize(("prompt", "limit"), [([], 5), ([1] * 60, 5), ([1], 0)])
def test_what_cannot_fit_is_refused(engine: BatchingEngine, prompt: list[int], limit: int) -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match="do not fit"):
            engine.generate(prompt, greedy(limit))

    asyncio.run(run())
