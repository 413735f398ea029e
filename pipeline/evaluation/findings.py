"""What answers show beside the metrics: the worst, near intents that are mixed up, calibration.

Knows texts and values; neither models nor files.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.measure import Measured
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.overlap import normalise

BINS = 10
_NEAR = 0.75  # similarity from which an answer counts as another question's
_MOST_ANSWERS = 2_000  # compared with one another
_MOST_PAIRS = 20


@dataclass(frozen=True)
class Confusion:
    """Answers to questions of one expected answer that are another one's.

    wanted, given: the expected answers; or the tags, where each has one of its own.
    """

    wanted: str
    given: str
    count: int
    example: str


def worst(metric: Metric, measured: Measured, most: int) -> list[int]:
    """Places of the answers with the worst values, the worst first; of equal ones those that are
    the least likely for the model. Of a share, answers that cannot be better are left out."""
    sample = measured.samples.get(metric.name)
    if sample is None or not metric.by_question:
        return []
    losses = measured.answers.losses or [0.0] * len(sample.values)
    best = float(metric.higher_is_better) if metric.format.endswith("%") else None
    ranked = sorted(
        (place for place in sample.applies if sample.values[place] != best),
        key=lambda place: (metric.gain(sample.values[place], 0), -losses[place], place),
    )
    return ranked[:most]


def confusions(measured: Measured) -> list[Confusion]:
    """Pairs of near intents: answers that are another question's expected one, the most first."""
    from rapidfuzz import fuzz, process

    answers = measured.answers
    places: dict[str, int] = {}  # where each expected answer is first
    for place, text in enumerate(answers.expected):
        places.setdefault(normalise(text), place)
    known = list(places)[:_MOST_ANSWERS]
    if len(known) < 2:
        return []
    names = _names(measured, places)
    found: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for place, text in list(enumerate(answers.texts))[:_MOST_ANSWERS]:
        ours, wanted = normalise(text), normalise(answers.expected[place])
        if not ours or ours == wanted:
            continue
        nearest = process.extractOne(ours, known, scorer=fuzz.ratio, score_cutoff=100 * _NEAR)
        if nearest is None or nearest[0] == wanted:
            continue
        pair = (names[wanted], names[nearest[0]])
        if pair[0] == pair[1]:
            continue
        found[pair] += 1
        if answers.asked:
            examples.setdefault(pair, answers.asked[place].text)
    return [
        Confusion(*pair, count, examples.get(pair, ""))
        for pair, count in found.most_common(_MOST_PAIRS)
    ]


def _names(measured: Measured, places: Mapping[str, int]) -> dict[str, str]:
    """A name for each expected answer: its tag, if no other answer has it, else its text."""
    answers = measured.answers
    tags = {
        text: answers.asked[place].tags[0] if answers.asked and answers.asked[place].tags else ""
        for text, place in places.items()
    }
    shared = Counter(tags.values())
    return {
        text: tags[text] if tags[text] and shared[tags[text]] == 1 else answers.expected[place]
        for text, place in places.items()
    }


def _is_share(metric: Metric) -> bool:
    return metric.higher_is_better and metric.format.endswith("%")


def calibration(metric: Metric, measured: Measured, confidences: Sequence[float]) -> dict[str, Any]:
    """Whether answers of which the model is surer are better, in bins of its confidence.

    confidences: the geometric mean of the probabilities of an answer's tokens, 0 to 1.
    error: the expected calibration error (Guo et al. 2017). Empty for a metric that is no share.
    """
    sample = measured.samples.get(metric.name)
    if sample is None or not confidences or not _is_share(metric):
        return {}
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for place in sample.applies:
        sure = confidences[place]
        if not math.isnan(sure):
            bins[min(BINS - 1, int(sure * BINS))].append((sure, sample.values[place]))
    count = sum(map(len, bins))
    if not count:
        return {}
    rows = [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "questions": len(entries),
            "confidence": sum(sure for sure, _ in entries) / len(entries),
            "value": sum(value for _, value in entries) / len(entries),
        }
        for number, entries in enumerate(bins)
        if entries
    ]
    error = sum(row["questions"] * abs(row["confidence"] - row["value"]) for row in rows) / count
    return {"bins": rows, "error": error}
