"""Tokens are chosen as temperature, top_k, top_p and seed say."""

from collections import Counter

import numpy as np
import pytest

from pipeline.serving.engine import EngineFailed, Sampling
from pipeline.serving.sampling import Sampler

# Chances of 0.5, 0.25, 0.15 and 0.1 at temperature 1.
CHANCES = np.array([0.15, 0.5, 0.1, 0.25])
LOGITS = np.log(CHANCES).astype(np.float32) + 3
DRAWS = 4000


def draw(**how: float) -> Counter[int]:
    sampler = Sampler(Sampling(max_tokens=1, seed=5, **how))  # type: ignore[arg-type]
    return Counter(sampler.choose(LOGITS) for _ in range(DRAWS))


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


def test_the_same_seed_draws_the_same() -> None:
    samplers = [Sampler(Sampling(max_tokens=9, seed=seed)) for seed in (1, 1, 2)]
    first, again, other = ([s.choose(LOGITS) for _ in range(50)] for s in samplers)
    assert first == again
    assert first != other


def test_a_hair_of_temperature_does_not_overflow() -> None:
    assert draw(temperature=1e-6) == {1: DRAWS}


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineFailed, match="not finite"):
        Sampler(Sampling(max_tokens=1)).choose(np.full(4, np.nan, np.float32))
