"""Figures of merit for answers, and how sure they are. Knows neither models nor tokens.

Exact match and word F1 follow SQuAD (arXiv:1606.05250) without its removal of articles and
punctuation, which in a bank's answers are content ("1.5 %" is not "15 %"). Intervals are percentile
bootstraps over questions (Efron and Tibshirani 1993, chapter 13).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_CHUNK = 100  # resamples at a time: [chunk, questions] counts in memory


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def normalise(text: str) -> str:
    """The text without differences of case, white space and Unicode form."""
    # Folding case may undo the composed form (U+0130), so that comes last.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def exact_match(answer: str, expected: str) -> bool:
    """Whether two texts are the same up to case, white space and Unicode form."""
    return normalise(answer) == normalise(expected)


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of the shares of words that two texts have in common: 0 to 1."""
    ours, theirs = (re.findall(r"\w+", normalise(text)) for text in (answer, expected))
    if not ours or not theirs:
        return float(exact_match(answer, expected))
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


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
    difference = np.subtract(ours, theirs, dtype=np.float64)
    return bootstrap(difference.tolist(), samples=samples, seed=seed)
