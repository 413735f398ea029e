"""Continuous batching: every answer is the one it would be alone, whoever joins and leaves."""

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engines.base import EngineFailed, Guide, QueueFull, Sampling
from pipeline.engines.batching import scheduler as batching
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel, mix


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
    deadline = time.monotonic() + 60
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


def test_a_step_that_fails_is_repeated_row_by_row(engine: BatchingEngine, model: ListModel) -> None:
    async def run() -> None:
        model.batch_error = MemoryError("too large")
        assert await read(engine, [1], greedy(5)) == alone([1], greedy(5))

    asyncio.run(run())


class Faulty(ListModel):
    """Its logits hold no number behind a token 13, and it fails at a prompt that begins with 14."""

    def prefill(self, row: int, ids: Sequence[int], start: int) -> np.ndarray:
        if ids[0] == 14:
            raise MemoryError("too large")
        return super().prefill(row, ids, start)

    def _logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        logits = super()._logits(sequences)
        logits[[13 in sequence for sequence in sequences]] = np.nan
        return logits


def after(sequence: Sequence[int]) -> int:
    return sequence[-1] + 1


@pytest.mark.parametrize("prompt", [[13], [11]])  # at the prompt's end, and at a later token
def test_logits_without_numbers_fail_their_own_answer_alone(prompt: list[int]) -> None:
    engine = BatchingEngine(Faulty(after), max_input_len=60, max_queue=9)

    async def run() -> None:
        asked = (read(engine, prompt, greedy(6)), read(engine, [30], greedy(6)))
        failed, whole = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(failed, EngineFailed)
        assert "not finite" in str(failed)
        assert whole == list(range(31, 37))
        assert engine.load()[:2] == (0, 0)

    asyncio.run(asyncio.wait_for(run(), 20))
    engine.close()


def test_an_answer_that_ended_is_whole_though_the_next_prompt_breaks_the_model() -> None:
    engine = BatchingEngine(Faulty(after), max_input_len=60, max_queue=9)

    async def run() -> None:
        with engine._changed:  # so that one step reads both
            asked = [engine.generate([first], greedy(1)) for first in (20, 14)]
        assert [token.id for tokens in [t async for t in asked[0]] for token in tokens] == [21]
        with pytest.raises(EngineFailed, match="too large"):
            await anext(asked[1])

    asyncio.run(asyncio.wait_for(run(), 20))
    engine.close()


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


@pytest.mark.parametrize("part", [2, 512])
def test_log_probabilities_of_prompt_and_answer(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(batching, "PROMPT_TOKENS_PER_STEP", part)
    prompt = [5, mix([5]), 7, 8, mix([5, mix([5]), 7, 8])]
    likely, unlikely = (value - math.log(math.exp(10) + 399) for value in (10, 0))

    async def run() -> None:
        how = dataclasses.replace(greedy(2), logprobs=1, prompt_logprobs=1)
        stream = engine.generate(prompt, how)
        tokens = [token for tokens in [t async for t in stream] for token in tokens]
        scored = stream.prompt_logprobs
        assert scored is not None
        assert [token.id for token in scored] == prompt
        assert scored[0].logprob is None
        expected = [likely, unlikely, unlikely, likely]
        assert [token.logprob for token in scored[1:]] == pytest.approx(expected)
        assert [token.top[0][0] for token in scored[1:]] == [
            mix(prompt[: i + 1]) for i in range(len(prompt) - 1)
        ]
        assert [token.id for token in tokens] == alone(prompt, how)
        assert [token.logprob for token in tokens] == pytest.approx([likely] * 2)

    asyncio.run(run())


def test_guided_answers_beside_others(tmp_path: Path) -> None:
    chat = Chat.load(make_model_folder(tmp_path, "demo"))
    model = ListModel(mix)
    engine = BatchingEngine(model, max_input_len=60, max_queue=9, guides=Guides(chat))

    async def run() -> None:
        guided = dataclasses.replace(
            greedy(20, chat.stop_ids), guide=Guide("regex", "It costs 18|No")
        )
        bad = dataclasses.replace(guided, guide=Guide("regex", "("))
        answers = await asyncio.gather(
            read(engine, [3, 4], guided),
            read(engine, [9], greedy(20)),
            read(engine, [3, 4], bad),
            return_exceptions=True,
        )
        assert isinstance(answers[0], list)
        assert chat.decode(answers[0]) in ("It costs 18", "No")
        assert answers[1] == alone([9], greedy(20))
        assert isinstance(answers[2], ValueError)
        assert engine.load()[:2] == (0, 0)

    try:
        assert "guide" in engine.features
        asyncio.run(run())
    finally:
        engine.close()


def test_without_a_tokenizer_there_are_no_guides(engine: BatchingEngine) -> None:
    assert "guide" not in engine.features

    async def run() -> None:
        with pytest.raises(ValueError, match="does not support guided decoding"):
            engine.generate([1], dataclasses.replace(greedy(1), guide=Guide("json_object", "")))

    asyncio.run(run())


class LoraModelRunner(ListModel):
    """Its adapters are numbers, which are added to what would follow."""

    def __init__(self) -> None:
        super().__init__(mix)
        self.loaded: dict[str | None, int] = {None: 0}
        self._of_rows: list[str | None] = [None] * self.slots

    def use_adapter(self, row: int, name: str | None) -> None:
        self._of_rows[row] = name

    def check_adapter(self, folder: Path) -> None:
        if not folder.name.isdigit():
            raise ValueError("not of this model's shape")

    def add_adapter(self, name: str, folder: Path) -> None:
        self.loaded[name] = int(folder.name)

    def remove_adapter(self, name: str) -> None:
        del self.loaded[name]

    def prefill(self, row: int, ids: Sequence[int], start: int) -> np.ndarray:
        return np.roll(super().prefill(row, ids, start), self.loaded[self._of_rows[row]], axis=1)

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        shifts = [self.loaded[name] for name in self._of_rows]
        rows = zip(super().decode(ids, lengths), shifts, strict=False)
        return np.stack([np.roll(logits, shift) for logits, shift in rows])

    def move(self, source: int, target: int, length: int) -> None:
        super().move(source, target, length)
        self._of_rows[target] = self._of_rows[source]


def adapted(prompt: Sequence[int], count: int, shift: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < count:
        tokens.append((mix([*prompt, *tokens]) + shift) % 400)
    return tokens


def test_answers_with_adapters_in_one_batch() -> None:
    engine = BatchingEngine(LoraModelRunner(), max_input_len=60, max_queue=30)
    names: list[tuple[str | None, int]] = [("one", 1), (None, 0), ("two", 2)]

    async def run() -> None:
        await engine.add_adapter("one", Path("1"))
        await engine.add_adapter("two", Path("2"))
        assert engine.adapters() == ["one", "two"]
        asked = [
            read(engine, [i], dataclasses.replace(greedy(3 + i), adapter=names[i % 3][0]))
            for i in range(12)
        ]
        answers = await asyncio.gather(*asked)
        assert answers == [adapted([i], 3 + i, names[i % 3][1]) for i in range(12)]
        with pytest.raises(ValueError, match="shape"):
            await engine.add_adapter("three", Path("x"))
        assert engine.adapters() == ["one", "two"]

    asyncio.run(asyncio.wait_for(run(), 20))
    engine.close()


WITH_ONE = dataclasses.replace(greedy(5), adapter="one")


async def remove_during_an_answer(
    engine: BatchingEngine, model: LoraModelRunner
) -> tuple["asyncio.Task[list[int]]", "asyncio.Task[None]"]:
    """An answer to [7] with the adapter "one", held up at the model's gate, and the removal."""
    await engine.add_adapter("one", Path("1"))
    model.gated = True
    answering = asyncio.create_task(read(engine, [7], WITH_ONE))
    await asyncio.sleep(0)
    wait_for(lambda: engine.load().running == 1)
    leaving = asyncio.create_task(engine.remove_adapter("one"))
    await asyncio.sleep(0.05)
    return answering, leaving


def test_an_adapter_goes_when_its_last_answer_has_ended() -> None:
    model = LoraModelRunner()
    engine = BatchingEngine(model, max_input_len=60, max_queue=30)

    async def run() -> None:
        answering, leaving = await remove_during_an_answer(engine, model)
        assert "one" in model.loaded
        with pytest.raises(ValueError, match="no adapter 'one'"):
            engine.generate([7], WITH_ONE)
        model.gate.release(100)
        assert await answering == adapted([7], 5, 1)
        await leaving
        assert "one" not in model.loaded

    asyncio.run(asyncio.wait_for(run(), 20))
    engine.close()


def test_a_name_is_taken_until_the_last_answer_with_it_has_ended() -> None:
    model = LoraModelRunner()
    engine = BatchingEngine(model, max_input_len=60, max_queue=30)

    async def run() -> None:
        answering, leaving = await remove_during_an_answer(engine, model)
        leaving.cancel()  # whoever asked waits no longer
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="requests still use the former 'one'"):
            await engine.add_adapter("one", Path("2"))
        model.gate.release(100)
        assert await answering == adapted([7], 5, 1)
        wait_for(lambda: "one" not in model.loaded)
        await engine.add_adapter("one", Path("2"))
        assert await read(engine, [7], WITH_ONE) == adapted([7], 5, 2)

    asyncio.run(asyncio.wait_for(run(), 20))
    engine.close()
