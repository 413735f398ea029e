"""When a version is no worse than the champion, on the same questions."""

import random

import pytest

from pipeline.tracking.champion_rule import compare, wins, words

METRIC = {"title": "exact match", "format": ".1%", "higher_is_better": True}


def scores(*values: float) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values)}


def test_the_interval_is_that_of_agresti_and_min() -> None:
    """Their formula, with 0.5 added to each of the four cells: 12 and 5 of 100 pairs differ."""
    ours = scores(*[1.0] * 12, *[0.0] * 5, *[1.0] * 83)
    theirs = scores(*[0.0] * 12, *[1.0] * 5, *[1.0] * 83)
    found = compare(ours, theirs)
    assert found is not None
    assert (found.questions, found.better, found.worse) == (100, 12, 5)
    n, b, c = 102, 12.5, 5.5
    spread = ((b + c) / n - ((b - c) / n) ** 2) ** 0.5 / n**0.5
    assert found.low == pytest.approx((b - c) / n - 1.959964 * spread)
    assert found.high == pytest.approx((b - c) / n + 1.959964 * spread)
    assert found.difference == pytest.approx(0.07)


def test_the_same_answers_win_where_there_are_enough_of_them() -> None:
    for count, enough in ((225, True), (10, False)):
        same = scores(*[1.0] * count)
        found = compare(same, same)
        assert found is not None
        assert found.difference == 0
        assert wins(found, margin=0.03) is enough


def test_pairs_decide_where_two_intervals_of_their_own_would_not() -> None:
    draw = random.Random(0)
    theirs = {str(i): float(draw.random() < 0.7) for i in range(400)}
    ours = {q: 1.0 if i < 12 else value for i, (q, value) in enumerate(theirs.items())}
    found = compare(ours, theirs)
    assert found is not None
    assert found.low > -0.01
    shuffled = {q: float(draw.random() < found.ours) for q in theirs}
    apart = compare(shuffled, theirs)
    assert apart is not None
    assert apart.low < found.low < 0.03
    assert apart.high - apart.low > 3 * (found.high - found.low)


def test_only_questions_of_both_count() -> None:
    found = compare(scores(1.0, 0.0, 1.0), {"1": 1.0, "2": 1.0, "9": 0.0})
    assert found is not None
    assert (found.questions, found.ours, found.theirs) == (2, 0.5, 1.0)
    assert compare(scores(1.0), {"7": 1.0}) is None


def test_where_less_is_better_the_other_end_counts() -> None:
    ours, theirs = scores(*[0.2] * 300), scores(*[0.5] * 300)
    found = compare(ours, theirs, higher_is_better=False)
    assert found is not None
    assert found.better == 300
    assert wins(found, margin=0.0, higher_is_better=False)
    assert not wins(found, margin=0.0)


def test_the_reason_has_both_figures_the_pairs_and_the_interval() -> None:
    ours = scores(*[1.0] * 8, *[0.0] * 2)
    found = compare(ours, scores(*[1.0] * 10))
    assert found is not None
    text = words(found, METRIC, champion="4", margin=0.03)
    assert "80.0% exact match, version 4 has 100.0% on the same 10 questions" in text
    assert "(0 better, 2 worse; difference -20.0%, 95 % interval" in text
    assert "allowed -3.0%" in text
    assert text.endswith("not shown to be no worse, so that version stays champion")
