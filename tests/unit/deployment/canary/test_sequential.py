"""Confidence sequences hold at every look, and shrink."""

import random

import pytest

from pipeline.deployment.canary.sequential import (
    Counts,
    difference,
    pool_mean,
    requests_needed,
    share,
)

ALPHA = 0.1
RUNS = 150


def test_a_share_is_inside_at_every_look_as_often_as_it_says() -> None:
    random.seed(5)
    left = 0
    for _ in range(RUNS):
        some = 0
        for count in range(1, 401):
            some += random.random() < 0.1
            if count % 20 == 0:
                found = share(Counts(some, count), ALPHA)
                if not found.low <= 0.1 <= found.high:
                    left += 1
                    break
    assert left <= RUNS * ALPHA


def test_a_share_narrows_and_keeps_to_its_ends() -> None:
    assert share(Counts(0, 0), ALPHA) == share(Counts(), ALPHA)
    assert (share(Counts(0, 0), ALPHA).low, share(Counts(0, 0), ALPHA).high) == (0.0, 1.0)
    none, all_of_them = share(Counts(0, 50), ALPHA), share(Counts(50, 50), ALPHA)
    assert none.low == 0.0
    assert all_of_them.high == 1.0
    assert none.high == pytest.approx(1 - all_of_them.low)
    wide, narrow = share(Counts(10, 100), ALPHA), share(Counts(100, 1000), ALPHA)
    assert wide.low < narrow.low < 0.1 < narrow.high < wide.high


def test_a_difference_is_found_after_a_few_requests_that_all_fail() -> None:
    found = difference(Counts(12, 12), Counts(1, 100), 0.01)
    assert found.low > 0.1
    alike = difference(Counts(1, 100), Counts(10, 1000), 0.01)
    assert alike.low < 0 < alike.high


def test_the_mean_over_a_pool_is_inside_at_every_look_and_a_point_at_the_end() -> None:
    random.seed(7)
    left = 0
    for _ in range(RUNS):
        pool = [random.choice([0.0, 0.0, 0.0, 1.0, -1.0]) for _ in range(80)]
        mean = sum(pool) / len(pool)
        for count in range(1, 81, 4):
            found = pool_mean(pool[:count], len(pool), ALPHA)
            if not found.low - 1e-9 <= mean <= found.high + 1e-9:
                left += 1
                break
        last = pool_mean(pool, len(pool), ALPHA)
        assert last.low == pytest.approx(mean)
        assert last.high == pytest.approx(mean)
    assert left <= RUNS * ALPHA


def test_a_clear_difference_on_a_pool_is_seen_before_all_are_asked() -> None:
    assert pool_mean([1.0] * 60, 300, 0.05).low > 0.03
    assert pool_mean([], 10, 0.05) == pool_mean([], 3, 0.05)


def test_the_sample_size_is_enough_for_most_equal_candidates() -> None:
    margin, alpha = 0.1, 0.0125
    needed = requests_needed(Counts(50, 1000), 0.5, margin, alpha)
    random.seed(11)
    decided = 0
    for _ in range(RUNS):
        ours, theirs = (
            Counts(sum(random.random() < 0.05 for _ in range(needed)), needed) for _ in range(2)
        )
        decided += difference(ours, theirs, alpha).high <= margin
    assert decided >= 0.9 * RUNS


def test_more_is_asked_for_a_smaller_margin_and_a_smaller_share() -> None:
    seen = Counts(20, 1000)
    assert requests_needed(seen, 0.5, 0.01, 0.01) > 2 * requests_needed(seen, 0.5, 0.02, 0.01)
    every_tenth, every_second = (requests_needed(seen, s, 0.02, 0.01) for s in (0.1, 0.5))
    assert every_tenth / 0.1 > every_second / 0.5  # of all requests
