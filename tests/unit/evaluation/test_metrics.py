import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.confidence import (
    Difference,
    Sample,
    bootstrap,
    estimate,
    paired_difference,
)
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.overlap import exact_match, normalise, token_f1

values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("Call  extension 210.\n", "call extension 210.", True),
        ("Caf\u0065\u0301", "CAFÉ", True),
        ("The fee is 1.5 %", "The fee is 15 %", False),
        ("Call extension 210", "Call extension 210.", False),
        ("", "a", False),
    ],
)
def test_exact_match(answer: str, expected: str, same: bool) -> None:
    assert exact_match(answer, expected) is same


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("a b c", "a b c", 1.0),
        ("a a b", "a b b", 2 / 3),  # one a and one b are shared
        ("a b", "c d", 0.0),
        ("a", "a b c", 0.5),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("!", "?", 0.0),
    ],
)
def test_token_f1(answer: str, expected: str, score: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(score)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(), st.text())
def test_f1_is_symmetric_bounded_and_whole_for_a_match(a: str, b: str) -> None:
    assert token_f1(a, b) == token_f1(b, a)
    assert 0 <= token_f1(a, b) <= 1
    assert token_f1(a, a.upper().lower()) == 1 or not exact_match(a, a.upper().lower())


@given(values, st.integers(0, 5))
def test_interval_lies_within_the_values_and_repeats(data: list[float], seed: int) -> None:
    estimate = bootstrap(data, samples=120, seed=seed)
    slack = 1e-9 * (1 + max(map(abs, data)))
    assert min(data) - slack <= estimate.low <= estimate.high <= max(data) + slack
    assert estimate == bootstrap(data, samples=120, seed=seed)
    assert math.isclose(estimate.value, float(np.mean(data)), abs_tol=slack)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    draws = random.random((200, 60)) < 0.7
    hits = 0
    for draw in draws:
        estimate = bootstrap(draw.astype(float).tolist(), samples=400, seed=1)
        hits += estimate.low <= 0.7 <= estimate.high
    assert 0.88 <= hits / len(draws) <= 0.99


def test_weights_make_a_ratio_of_sums() -> None:
    assert bootstrap([10, 2], [5, 1], samples=100, seed=0).value == 2
    assert bootstrap([9, 1], [1, 9], samples=100, seed=0).value == 1


def difference(metric: str, ours: list[float], theirs: list[float], **more: float) -> Difference:
    sides = [Sample(side) for side in (ours, theirs)]
    found = paired_difference(METRICS[metric], *sides, samples=300, seed=0, **more)
    assert found is not None
    return found


def test_paired_difference_is_surer_than_two_intervals() -> None:
    random = np.random.default_rng(0)
    ours = random.random(100)
    theirs = ours - 0.1 + random.normal(0, 0.01, 100)
    paired = difference("token_f1", ours.tolist(), theirs.tolist())
    apart = bootstrap(ours.tolist(), samples=300, seed=0)
    assert paired.value == pytest.approx(0.1, abs=0.01)
    assert paired.high - paired.low < (apart.high - apart.low) / 5
    assert paired.worse == 0


def test_the_paired_test_counts_resamples_that_are_worse_than_the_margin() -> None:
    ours, theirs = [0.0] * 30 + [1.0] * 70, [1.0] * 100
    assert difference("token_f1", ours, theirs).worse == 1
    assert 0.2 < difference("token_f1", ours, theirs, margin=0.3).worse < 0.8
    assert difference("token_f1", ours, theirs, margin=0.5).worse == 0
    # Of a figure that is better when it is lower.
    assert difference("refusal_rate", theirs, ours).worse == 1
    assert difference("refusal_rate", ours, theirs).worse == 0


def test_a_ratio_and_its_transform_are_compared_as_they_are_shown() -> None:
    ours, theirs = Sample([2.0, 4.0], [2.0, 2.0]), Sample([4.0, 8.0], [2.0, 2.0])
    found = paired_difference(METRICS["perplexity"], ours, theirs, samples=100, seed=0)
    assert found is not None
    assert found.value == pytest.approx(math.exp(1.5) - math.exp(3))


def test_what_cannot_be_compared() -> None:
    metric = METRICS["token_f1"]
    with pytest.raises(ValueError, match="1 and 2 values are not of the same questions"):
        paired_difference(metric, Sample([1.0]), Sample([1.0, 2.0]), samples=100, seed=0)
    nothing = Sample([math.nan])
    assert paired_difference(metric, nothing, Sample([1.0]), samples=100, seed=0) is None
    assert estimate(metric, nothing, samples=100, seed=0) is None


def test_values_that_do_not_apply_are_left_out() -> None:
    found = estimate(METRICS["json_valid"], Sample([1.0, math.nan, 0.0]), samples=100, seed=0)
    assert found is not None
    assert (found.value, found.questions) == (0.5, 2)


def test_better_is_what_the_record_says() -> None:
    assert METRICS["exact_match"].gain(0.9, 0.8) == pytest.approx(0.1)
    assert METRICS["answer_loss"].gain(0.9, 0.8) == pytest.approx(-0.1)
