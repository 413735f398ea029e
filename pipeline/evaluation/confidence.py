"""How sure a figure is: percentile bootstraps over the questions, and paired ones.

Efron and Tibshirani 1993, chapter 13; the paired test is that of Koehn 2004. Knows no models.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.metrics import Metric

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
_CHUNK = 100  # resamples at a time: [chunk, questions] counts in memory


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval.

    questions: how many it is of.
    """

    value: float
    low: float
    high: float
    questions: int = 0


@dataclass(frozen=True)
class Difference(Estimate):
    """Ours less theirs. worse: the share of resamples in which ours is worse than allowed."""

    worse: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A metric's values, one a question, and their weights; NaN where it does not apply."""

    values: Sequence[float]
    weights: Sequence[float] | None = None

    def at(self, places: Sequence[int]) -> "Sample":
        """The sample of some of the questions."""
        weights = self.weights
        return Sample([self.values[i] for i in places], weights and [weights[i] for i in places])

    @property
    def applies(self) -> list[int]:
        """Places of the questions to which the metric applies."""
        return [place for place, value in enumerate(self.values) if not math.isnan(value)]


def estimate(metric: Metric, sample: Sample, *, samples: int, seed: int) -> Estimate | None:
    """A metric with its interval over the questions; None if it applies to none.

    samples: resamples to draw.
    """
    sample = sample.at(sample.applies)
    if not sample.values:
        return None
    found = bootstrap(sample.values, sample.weights, samples=samples, seed=seed)
    low, high = sorted((metric.transform(found.low), metric.transform(found.high)))
    return Estimate(metric.transform(found.value), low, high, found.questions)


def bootstrap(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    samples: int,
    seed: int,
) -> Estimate:
    """sum(values) / sum(weights), by default the mean, with its interval over the questions.

    values, weights: one a question; weights are positive.
    samples: resamples to draw, with replacement, of all questions.

    Raises:
        ValueError: there are no values, or not as many weights.
    """
    import numpy as np

    top, bottom = _columns(values, weights)
    counted = _resamples(len(top), samples=samples, seed=seed)
    ratios = [(counts @ top) / (counts @ bottom) for counts in counted]
    low, high = np.quantile(np.concatenate(ratios), _TAILS)
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


def paired_difference(
    metric: Metric, ours: Sample, theirs: Sample, *, samples: int, seed: int, margin: float = 0.0
) -> Difference | None:
    """Ours less theirs on the questions to which the metric applies for both; None if it applies
    to none. Surer than the two intervals apart.

    margin: how much worse ours may be.

    Raises:
        ValueError: they are not as many.
    """
    import numpy as np

    if len(ours.values) != len(theirs.values):
        given = f"{len(ours.values)} and {len(theirs.values)}"
        raise ValueError(f"{given} values are not of the same questions")
    shared = sorted(set(ours.applies) & set(theirs.applies))
    if not shared:
        return None
    ours, theirs = ours.at(shared), theirs.at(shared)
    sides = [_columns(side.values, side.weights) for side in (ours, theirs)]
    transform = np.vectorize(metric.transform, otypes=[float])
    found = []
    for counts in _resamples(len(shared), samples=samples, seed=seed):
        ratios = [transform((counts @ top) / (counts @ bottom)) for top, bottom in sides]
        found.append(ratios[0] - ratios[1])
    differences = np.concatenate(found)
    low, high = np.quantile(differences, _TAILS).tolist()
    ends = [metric.transform(float(top.sum() / bottom.sum())) for top, bottom in sides]
    gains = differences if metric.higher_is_better else -differences
    worse = float((gains < -margin - _EQUAL).mean())
    return Difference(ends[0] - ends[1], float(low), float(high), len(shared), worse)


_TAILS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
_EQUAL = 1e-9  # a difference of just the margin is allowed, however it is rounded


def _columns(
    values: Sequence[float], weights: Sequence[float] | None
) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    top = np.asarray(values, dtype=np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(top) or len(top) != len(bottom):
        raise ValueError(f"{len(top)} values and {len(bottom)} weights cannot be averaged")
    return top, bottom


def _resamples(count: int, *, samples: int, seed: int) -> "Iterator[np.ndarray]":
    """How often each of the questions is in a resample: [chunk, count]."""
    import numpy as np

    random = np.random.default_rng(seed)
    chance = np.full(count, 1 / count)
    for start in range(0, samples, _CHUNK):
        yield random.multinomial(count, chance, size=min(_CHUNK, samples - start))
