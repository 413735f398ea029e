"""Prompt lookup: the same tokens as without it, in fewer passes."""

import asyncio
import random
import tracemalloc
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engines.base import EngineFailed, Guide, Sampling, Token
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.prompt_lookup import INDEX_BYTES, LONGEST_PAUSE, PromptLookup
from pipeline.engines.batching.request import Request
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from tests.unit.engines.batching.test_scheduler import greedy
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel

VOCABULARY, LENGTH = 400, 160


class Babbler(ListModel):
    """Random logits that depend on the last `order` tokens: it repeats itself and then does not."""

    def __init__(self, seed: int, order: int, kinds: int, **given: Any) -> None:
        super().__init__(lambda _: 0, vocab_size=VOCABULARY, max_seq_len=LENGTH, **given)
        self._seed, self._order, self._kinds = seed, order, kinds
        self.passes = 0

    def prefill(self, row: int, ids: Sequence[int], start: int) -> np.ndarray:
        self.passes += 1
        return super().prefill(row, ids, start)

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        self.passes += 1
        # The rest of a draft may be behind the tokens of a row: it is written over.
        for row, length in enumerate(lengths):
            self._rows[row] = self._rows[row][: length - 1]
        return super().decode(ids, lengths)

    def _logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        ends = [tuple(t % self._kinds for t in s[-self._order :]) for s in sequences]
        return np.stack([random_logits((self._seed, *end)) for end in ends])


class Loop(Babbler):
    """Counts to five again and again."""

    def _logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        logits = np.zeros((len(sequences), VOCABULARY), np.float32)
        for row, sequence in enumerate(sequences):
            logits[row, sequence[-1] % 5 + 1] = 40
        return logits


@lru_cache(4096)
def random_logits(state: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(state).normal(0, 2, VOCABULARY).astype(np.float32)


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Guides:
    return Guides(Chat.load(make_model_folder(tmp_path_factory.mktemp("model"), "demo")))


SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 5]),
    seed=st.integers(0, 9),
    stop_ids=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=8),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    logit_bias=st.sampled_from([{}, {7: 3.0}]),
    min_tokens=st.sampled_from([0, 9]),
    bad_words=st.sampled_from([(), ((7,), (8, 9))]),
    logprobs=st.sampled_from([None, None, 3]),
    guide=st.sampled_from([None, None, None, Guide("regex", "(ab|a|c )*")]),
)


def answers(
    model: ListModel,
    requests: Sequence[tuple[list[int], Sampling]],
    most: int,
    guides: Guides | None = None,
) -> tuple[list[list[Token]], list[Request]]:
    """The tokens of requests that are asked at once, and the requests."""

    async def run() -> tuple[list[list[Token]], list[Request]]:
        engine = BatchingEngine(
            model,
            max_input_len=LENGTH - 1,
            max_queue=100,
            guides=guides,
            speculative_tokens=most,
        )

        async def read(request: Request) -> list[Token]:
            return [token async for tokens in request for token in tokens]

        try:
            asked = [engine.generate(prompt, how) for prompt, how in requests]
            return await asyncio.wait_for(asyncio.gather(*map(read, asked)), 60), asked
        finally:
            engine.close()

    return asyncio.run(run())


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=60), SAMPLINGS),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(2, 12),
    st.integers(1, 4),
    st.sampled_from([1, 4, 8]),
)
def test_tokens_are_those_of_decoding_without_it(
    guides: Guides,
    requests: list[tuple[list[int], Sampling]],
    seed: int,
    order: int,
    kinds: int,
    slots: int,
    most: int,
) -> None:
    """Greedy or sampled with a seed, in batches, with stops, penalties, guides, logprobs."""
    plain, _ = answers(Babbler(seed, order, kinds, slots=slots), requests, 0, guides)
    found, asked = answers(Babbler(seed, order, kinds, slots=slots), requests, most, guides)
    assert found == plain
    for request, tokens in zip(asked, found, strict=True):
        assert request.drafts is not None
        drafted, right = request.drafts
        assert 0 <= right <= drafted
        assert right <= len(tokens)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_repeats_takes_fewer_passes(temperature: float) -> None:
    prompt = [1, 2, 3, 4, 5] * 4
    how = Sampling(60, temperature=temperature, seed=1)
    plain, fast = Loop(1, 1, 1), Loop(1, 1, 1)
    without, _ = answers(plain, [(prompt, how)], 0)
    found, (request,) = answers(fast, [(prompt, how)], 8)
    assert found == without
    assert plain.passes == 60
    assert fast.passes == 8  # the prompt's, and 59 tokens, nine at a time
    assert request.drafts == (52, 52)


def test_rows_without_a_draft_take_their_step_together() -> None:
    """One sequence repeats itself among two that do not; all get their own tokens."""
    prompts = [[9, 17, 60, 33], [1, 2, 3, 1, 2, 3, 1, 2], [5, 80, 41, 77]]
    requests = [(prompt, greedy(20)) for prompt in prompts]
    plain, _ = answers(Babbler(3, 2, 400), requests, 0)
    model = Babbler(3, 2, 400)
    found, _ = answers(model, requests, 4)
    assert found == plain
    assert 3 in model.batches


def test_where_nothing_is_right_drafts_become_rare() -> None:
    lookup, prompt = PromptLookup(8), [1, 2] * 20
    tried = 0
    for _ in range(200):
        if draft := lookup.draft(prompt, [], 50):
            lookup.judge(len(draft), 0)
            tried += 1
    assert tried == 10
    assert lookup.drafted == 8 + 9  # one token each after the first
    assert LONGEST_PAUSE == 31


def test_a_draft_is_what_followed_last_and_is_no_longer_than_its_limit() -> None:
    lookup = PromptLookup(4)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3, 7, 8, 9, 1, 2, 3]
    assert lookup.draft(prompt, [], 50) == [7, 8, 9, 1]
    assert lookup.draft(prompt, [], 2) == [7, 8]
    assert lookup.draft(prompt, [], 0) == []
    assert lookup.draft(prompt, [4], 50) == [5, 6, 1, 2]  # three tokens count more than two
    assert lookup.draft(prompt, [4, 99], 50) == []
    assert PromptLookup(6).draft([7, 8, 7, 8], [], 50) == [7, 8] * 3
    assert PromptLookup(6).draft([7], [], 50) == []


def test_an_index_takes_no_more_memory_than_plans_say() -> None:
    chance = random.Random(1)
    prompt = [chance.randrange(150_000) for _ in range(5_600)]
    lookup = PromptLookup(8)
    tracemalloc.start()
    lookup.draft(prompt, [], 50)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert INDEX_BYTES / 2 < size / len(prompt) <= INDEX_BYTES


def test_a_fault_while_a_draft_is_read_ends_that_request_alone() -> None:
    class Broken(Loop):
        def prefill(self, row: int, ids: Sequence[int], start: int) -> np.ndarray:
            if start and len(ids) > 1 and self._rows[row][0] == 1:
                raise MemoryError("no room")
            return super().prefill(row, ids, start)

    async def run() -> None:
        engine = BatchingEngine(
            Broken(3, 2, 400), max_input_len=LENGTH - 1, max_queue=9, speculative_tokens=4
        )
        try:
            failing = engine.generate([1, 2, 3, 4, 5] * 3, greedy(20))
            other = engine.generate([2, 3, 4, 5, 1] * 3, greedy(20))
            with pytest.raises(EngineFailed, match="MemoryError: no room"):
                async for _ in failing:
                    pass
            assert sum([len(tokens) async for tokens in other]) == 20
        finally:
            engine.close()

    asyncio.run(run())


def test_it_needs_tokens_that_are_chosen_on_the_cpu() -> None:
    model = ListModel(lambda _: 0)
    model.on_gpu = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="chosen on the CPU"):
        BatchingEngine(model, max_input_len=9, max_queue=1, speculative_tokens=4)
