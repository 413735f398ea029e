"""Tokens are chosen as temperature, top_k, top_p and seed say."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.engines.base import EngineFailed, Sampling
from pipeline.engines.batching.sampling import LEAST, Sampler, score

# Chances of 0.5, 0.25, 0.15 and 0.1 at temperature 1.
CHANCES = np.array([0.15, 0.5, 0.1, 0.25])
LOGITS = np.log(CHANCES).astype(np.float32) + 3
DRAWS = 4000


def draw(**how: float) -> Counter[int]:
    sampler = Sampler(Sampling(max_tokens=1, seed=5, **how))  # type: ignore[arg-type]
    return Counter(sampler.choose(LOGITS).id for _ in range(DRAWS))


def greedy(count: int, prompt: Sequence[int] = (), **how: Any) -> list[int]:
    """The tokens that follow one another if the model always gives the same logits."""
    sampler = Sampler(Sampling(max_tokens=count, temperature=0, **how), prompt)
    return [sampler.choose(LOGITS).id for _ in range(count)]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draw(temperature=0) == {1: DRAWS}


def test_temperature_one_draws_by_the_models_chances() -> None:
    drawn = draw()
    assert [drawn[i] / DRAWS for i in range(4)] == pytest.approx(CHANCES, abs=0.03)


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    squared = CHANCES**2 / (CHANCES**2).sum()
    assert draw(temperature=0.5)[1] / DRAWS == pytest.approx(squared[1], abs=0.03)
    assert draw(temperature=2)[1] / DRAWS < 0.42


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, {1}), (2, {1, 3}), (4, {0, 1, 2, 3}), (9, {0, 1, 2, 3})]
)
def test_top_k_keeps_the_k_likeliest(top_k: int, kept: set[int]) -> None:
    assert set(draw(top_k=top_k)) == kept


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, {1}), (0.6, {1, 3}), (0.8, {0, 1, 3})])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    assert set(draw(top_p=top_p)) == kept


@pytest.mark.parametrize(("min_p", "kept"), [(0.9, {1}), (0.4, {1, 3}), (0.29, {0, 1, 3})])
def test_min_p_keeps_what_is_so_likely_beside_the_likeliest(min_p: float, kept: set[int]) -> None:
    assert set(draw(min_p=min_p)) == kept


def test_a_bias_is_added_to_a_tokens_logit() -> None:
    assert greedy(1, logit_bias={2: 100}) == [2]
    assert greedy(1, logit_bias={1: -100}) == [3]
    assert draw(logit_bias={1: -100.0})[1] == 0  # type: ignore[arg-type]


def test_frequency_lowers_a_token_each_time_and_presence_once() -> None:
    # ln(0.5 / 0.25) is 0.69, ln(0.5 / 0.15) is 1.2: what the second and third lie below the first.
    assert greedy(5, frequency_penalty=0.5) == [1, 1, 3, 1, 3]
    assert greedy(5, presence_penalty=0.5) == [1, 1, 1, 1, 1]
    assert greedy(5, presence_penalty=0.8) == [1, 3, 1, 1, 1]


def test_repetition_penalty_counts_the_prompt_too() -> None:
    # Logits are 1.1, 2.3, 0.7 and 1.6: above zero they are divided.
    assert greedy(2, repetition_penalty=2) == [1, 3]
    assert greedy(3, prompt=[1, 3], repetition_penalty=2) == [1, 1, 1]
    assert greedy(2, prompt=[1], repetition_penalty=2) == [3, 1]
    below = Sampler(Sampling(max_tokens=1, temperature=0, repetition_penalty=2), [1])
    assert below.choose(LOGITS - 4).id == 3


def test_penalties_do_not_count_the_prompt() -> None:
    assert greedy(1, prompt=[1] * 9, frequency_penalty=2, presence_penalty=2) == [1]


def test_log_probabilities_are_the_models_own() -> None:
    how = Sampling(max_tokens=1, seed=5, temperature=0.3, logprobs=2, logit_bias={2: 100})
    token = Sampler(how).choose(LOGITS)
    assert token.id == 2
    assert token.logprob == pytest.approx(np.log(0.1), abs=1e-5)
    assert [i for i, _ in token.top] == [1, 3]
    assert [value for _, value in token.top] == pytest.approx(np.log([0.5, 0.25]), abs=1e-5)


def test_scores_of_a_prompts_tokens() -> None:
    logits = np.stack([LOGITS, LOGITS[::-1], np.array([0, -np.inf, 0, 0], np.float32)])
    scored = score(logits, [0, 0, 1], 1)
    chances = [np.log(0.15), np.log(0.25), LEAST]
    assert [token.logprob for token in scored] == pytest.approx(chances, abs=1e-5)
    assert [token.top[0][0] for token in scored] == [1, 2, 0]
    assert score(logits, [0, 0, 1], 0)[0].top == ()
    assert len(score(logits, [0, 0, 1], 99)[0].top) == 4


def test_the_same_seed_draws_the_same() -> None:
    samplers = [Sampler(Sampling(max_tokens=9, seed=seed)) for seed in (1, 1, 2)]
    first, again, other = ([s.choose(LOGITS).id for _ in range(50)] for s in samplers)
    assert first == again
    assert first != other


def test_a_hair_of_temperature_does_not_overflow() -> None:
    assert draw(temperature=1e-6) == {1: DRAWS}


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineFailed, match="not finite"):
        Sampler(Sampling(max_tokens=1)).choose(np.full(4, np.nan, np.float32))


def test_only_allowed_tokens_come() -> None:
    assert set(draw(allowed_ids=frozenset({0, 2}))) == {0, 2}  # type: ignore[arg-type]


def test_a_bad_word_is_left_at_its_last_token() -> None:
    assert greedy(3, bad_words=((1,),)) == [3, 3, 3]
    assert greedy(5, bad_words=((1, 1),)) == [1, 3, 1, 3, 1]
    assert greedy(4, bad_words=((1, 1, 1), (3,))) == [1, 1, 0, 1]


def test_an_answer_ends_after_its_fewest_tokens() -> None:
    ends = frozenset({1})
    assert greedy(4, stop_ids=ends, min_tokens=2) == [3, 3, 1, 1]


def test_nothing_is_left_to_choose() -> None:
    sampler = Sampler(Sampling(max_tokens=1, allowed_ids=frozenset({1}), bad_words=((1,),)))
    with pytest.raises(ValueError, match="no token is allowed here"):
        sampler.choose(LOGITS)


def test_a_scored_token_has_its_rank() -> None:
    assert [token.rank for token in score(LOGITS[None].repeat(4, 0), [0, 1, 2, 3], 1)] == [
        3,
        1,
        4,
        2,
    ]
