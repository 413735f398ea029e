"""When a version becomes champion: both are scored on the same questions, and compared in pairs.

A version that passed the gate becomes champion if there is none, or if it meets each of the gate's
conditions against the champion. By default there is one: it is not inferior, which means that at
the worse end of the 95 % interval of the difference of their scores it is at most `margin` worse. A
condition may ask for the value alone, or for a test that refuses what is shown to be worse. The
interval is that of Agresti and Min for matched proportions (Statistics in Medicine 24, 2005): a
pair for each of the four outcomes of two answers is added in halves, so that a few questions, or
none that differ, do not look certain. Pure functions; imports neither MLflow nor NumPy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

CONFIDENCE = 0.95
_TWO_SIDED = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_ONE_SIDED = NormalDist().inv_cdf(CONFIDENCE)
_EQUAL = 1e-9  # a difference of just the margin is allowed, however it is rounded


@dataclass(frozen=True)
class Comparison:
    """Two versions on the questions that both answered.

    questions: pairs. ours, theirs: means of the scores. difference, low, high: of ours less theirs,
    with the ends of its interval. better, worse: pairs in which ours is better, or worse.
    """

    questions: int
    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    better: int
    worse: int


def compare(
    ours: Mapping[str, float], theirs: Mapping[str, float], *, higher_is_better: bool = True
) -> Comparison | None:
    """Compare scores by question; None if there is no question that both have."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    count, values = len(shared), [(ours[q], theirs[q]) for q in shared]
    differences = [a - b for a, b in values]
    gains = differences if higher_is_better else [-d for d in differences]
    # One answer's score lies in this range, as 0 and 1 of an exact match.
    largest = max(1.0, max(max(pair) for pair in values) - min(min(pair) for pair in values))
    total, squares = sum(differences), sum(d * d for d in differences) + largest**2
    centre = total / (count + 2)
    spread = math.sqrt(max(0.0, squares / (count + 2) - centre**2) / (count + 2))
    reach = _TWO_SIDED * spread
    return Comparison(
        questions=count,
        ours=sum(a for a, _ in values) / count,
        theirs=sum(b for _, b in values) / count,
        difference=total / count,
        low=centre - reach,
        high=centre + reach,
        better=sum(gain > 0 for gain in gains),
        worse=sum(gain < 0 for gain in gains),
    )


def wins(
    found: Comparison, *, margin: float, higher_is_better: bool = True, by: str = "interval"
) -> bool:
    """Whether ours is at most `margin` worse.

    by: "interval", at the worse end of the interval; "value", on the questions; "test", unless a
    one-sided test at 5 % shows that it is more than that.
    """
    sign = 1 if higher_is_better else -1
    gain, ends = sign * found.difference, sorted((sign * found.low, sign * found.high))
    if by == "value":
        return gain >= -margin - _EQUAL
    if by == "test":
        centre, reach = sum(ends) / 2, (ends[1] - ends[0]) / 2
        return centre + reach * _ONE_SIDED / _TWO_SIDED >= -margin - _EQUAL
    return ends[0] >= -margin - _EQUAL


def words(
    found: Comparison,
    metric: Mapping[str, Any],
    *,
    champion: str,
    margin: float,
    by: str = "interval",
) -> str:
    """The comparison and its result in one sentence.

    metric: its title, format and higher_is_better. champion: number of its version.
    """
    shape, higher = metric["format"], metric["higher_is_better"]
    verdict = "not shown to be no worse, so that version stays champion"
    if by != "interval":
        verdict = "worse, so that version stays champion"
    if wins(found, margin=margin, higher_is_better=higher, by=by):
        verdict = "no worse than that"
    return (
        f"{found.ours:{shape}} {metric['title']}, version {champion} has {found.theirs:{shape}} on "
        f"the same {found.questions} questions ({found.better} better, {found.worse} worse; "
        f"difference {found.difference:+{shape}}, 95 % interval {found.low:+{shape}} to "
        f"{found.high:+{shape}}, allowed {-margin if higher else margin:+{shape}}): {verdict}"
    )
