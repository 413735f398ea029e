"""How sure a figure is: percentile bootstraps over the questions.

Efron and Tibshirani 1993, chapter 13. Knows no models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.metrics import Answers, Metric

CONFIDENCE = 0.95
_CHUNK = 100  # resamples at a time: [chunk, questions] counts in memory


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def estimate(metric: Metric, answers: Answers, *, samples: int, seed: int) -> Estimate:
    """A metric with its interval over the questions, from so many resamples.

    Raises:
        ValueError: there are no answers.
    """
    weights = metric.weights(answers) if metric.weights else None
    found = bootstrap(metric.values(answers), weights, samples=samples, seed=seed)
    low, high = sorted((metric.transform(found.low), metric.transform(found.high)))
    return Estimate(metric.transform(found.value), low, high)


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

    top = np.asarray(values, dtype=np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(top) or len(top) != len(bottom):
        raise ValueError(f"{len(top)} values and {len(bottom)} weights cannot be averaged")
    random = np.random.default_rng(seed)
    chance = np.full(len(top), 1 / len(top))
    ratios = []
    for start in range(0, samples, _CHUNK):
        counts = random.multinomial(len(top), chance, size=min(_CHUNK, samples - start))
        ratios.append((counts @ top) / (counts @ bottom))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, samples: int, seed: int
) -> Estimate:
    """Mean of ours - theirs, question by question: surer than the two intervals apart.

    Raises:
        ValueError: they are not as many, or there are none.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values are not of the same questions")
    difference = [our - their for our, their in zip(ours, theirs, strict=True)]
    return bootstrap(difference, samples=samples, seed=seed)
