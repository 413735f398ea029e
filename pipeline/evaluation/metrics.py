"""The table of metrics: how an answer is scored, and how the score is shown and used.

    from pipeline.evaluation.metrics import METRICS, Metric, of_texts
    METRICS.add(Metric(name="same_start", title="same start", ..., values=of_texts(same_start)))

Evaluation's report, the gate, the model card, MLflow and the summary ask the records. Exact match
and word F1 follow SQuAD (arXiv:1606.05250) without its removal of articles and punctuation, which
in a bank's answers are content ("1.5 %" is not "15 %"). Knows neither models nor tokens.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.tables import Table


@dataclass(frozen=True)
class Answers:
    """A model's answers to the test questions, one entry a question.

    texts, expected: the answers, and the right ones.
    cut: whether an answer reached the limit of tokens; without it, none did.
    losses: summed over the tokens of the expected answer, in nats. tokens: how many these are.
    """

    texts: Sequence[str]
    expected: Sequence[str]
    cut: Sequence[bool] = ()
    losses: Sequence[float] = ()
    tokens: Sequence[float] = ()


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    name: in report.json, in MLflow (name/model) and in settings.
    title: as in "exact match". meaning: what it measures, for the report.
    values: one a question. weights: one a question; the metric is sum(values) / sum(weights).
        None: the mean of the values.
    transform: of that quotient; monotonic, so that it holds for the ends of the interval, too.
    format: of a value, as in Python's format(): ".1%" or ".3f".
    higher_is_better: which way is better.
    gates: the gate, the registry's champion rule and the benchmark can use it. It must be a mean
        that follows from the texts of the answers alone.
    brief: it is in the terminal's table, too, which has 80 columns.
    """

    name: str
    title: str
    meaning: str
    values: Callable[[Answers], Sequence[float]]
    weights: Callable[[Answers], Sequence[float]] | None = None
    transform: Callable[[float], float] = float
    format: str = ".1%"
    higher_is_better: bool = True
    gates: bool = False
    brief: bool = True

    @property
    def heading(self) -> str:
        """The title at the beginning of a line."""
        return self.title[0].upper() + self.title[1:]

    def mean(self, answers: Answers) -> float:
        """The mean over the questions, of a metric that gates."""
        values = self.values(answers)
        return sum(values) / len(values)

    def gain(self, ours: float, theirs: float) -> float:
        """By how much our value is better than theirs; negative if it is worse."""
        return ours - theirs if self.higher_is_better else theirs - ours

    def text(self, value: float, *, signed: bool = False) -> str:
        return format(value, "+" * signed + self.format)


def of_texts(score: Callable[[str, str], float]) -> Callable[[Answers], list[float]]:
    """Metric.values from the score of one answer against the expected one."""

    def values(answers: Answers) -> list[float]:
        return [float(score(*pair)) for pair in zip(answers.texts, answers.expected, strict=True)]

    return values


def _exact(answers: Answers) -> list[float]:
    """An answer that was cut is not the expected one, whatever its beginning is."""
    values = of_texts(exact_match)(answers)
    cut = answers.cut or [False] * len(values)
    return [value * (not ended) for value, ended in zip(values, cut, strict=True)]


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


METRICS: Table[Metric] = Table(
    "metric",
    Metric(
        name="exact_match",
        title="exact match",
        meaning="share of the answers that are the expected one, but for case and white space; an "
        "answer that was cut at the limit of tokens is not",
        values=_exact,
        gates=True,
    ),
    Metric(
        name="token_f1",
        title="token F1",
        meaning="words in common with the expected answer, without case and white space",
        values=of_texts(token_f1),
        gates=True,
    ),
    Metric(
        name="answer_loss",
        title="answer loss",
        meaning="nats per token of the expected answer",
        values=lambda answers: answers.losses,
        weights=lambda answers: answers.tokens,
        format=".3f",
        higher_is_better=False,
    ),
    Metric(
        name="perplexity",
        title="perplexity",
        meaning="exponential of the answer loss",
        values=lambda answers: answers.losses,
        weights=lambda answers: answers.tokens,
        transform=math.exp,
        format=".3f",
        higher_is_better=False,
        brief=False,
    ),
)


def gate_metric() -> Metric:
    """What the gate, the champion rule and the benchmark use: the first that can be used so."""
    return next(metric for metric in METRICS.values() if metric.gates)
