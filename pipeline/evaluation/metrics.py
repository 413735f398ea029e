"""The table of metrics: how an answer is scored, and how the score is shown and used.

    from pipeline.evaluation.metrics import METRICS, Metric, of_texts
    METRICS.add(Metric(name="same_start", title="same start", ..., values=of_texts(same_start)))

Evaluation's report, the gate, the model card, MLflow and the summary ask the records. Knows neither
models nor tokens. docs/metrics.md is written from this table (tools/metric_table.py).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.core.tables import Table
from pipeline.evaluation import overlap, structure
from pipeline.evaluation.slices import Asked

Score = Callable[[str, str], float]


@dataclass(frozen=True)
class Answers:
    """A model's answers to the test questions, one entry a question.

    texts, expected: the answers, and the right ones.
    cut: whether an answer reached the limit of tokens; without it, none did.
    losses: summed over the tokens of the expected answer, in nats. tokens: how many these are.
    general_losses, general_tokens: the same of the windows of evaluate.general_text.
    asked: the questions. base: the base model's answers; without it, these are they.
    """

    texts: Sequence[str]
    expected: Sequence[str]
    cut: Sequence[bool] = ()
    losses: Sequence[float] = ()
    tokens: Sequence[float] = ()
    general_losses: Sequence[float] = ()
    general_tokens: Sequence[float] = ()
    asked: Sequence[Asked] = ()
    base: Sequence[str] | None = None


Values = Callable[[Answers], Sequence[float]]


class Resources(Protocol):
    """What some metrics need beside the answers (resources.py)."""

    @property
    def json_schema(self) -> Callable[[str], bool]: ...
    @property
    def pattern(self) -> re.Pattern[str]: ...
    @property
    def refusal(self) -> re.Pattern[str]: ...
    @property
    def similarity(self) -> Values: ...
    @property
    def judge_scores(self) -> Values: ...
    @property
    def judge_wins(self) -> Values: ...


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    name: in report.json, in MLflow (name/model) and in settings.
    title: as in "exact match". meaning: what it measures, for the report.
    values: one a question; NaN where it does not apply.
    bind: makes `values` from files and settings, for a metric that needs some.
    weights: one a question; the metric is sum(values) / sum(weights). None: the mean of the values.
    transform: of that quotient; monotonic, so that it holds for the ends of the interval, too.
    format: of a value, as in Python's format(): ".1%" or ".3f".
    higher_is_better: which way is better.
    served: it follows from the texts of the answers alone, so that a served engine has it, too.
    by_question: values belong to the test questions, so that there are slices and pairs.
    brief: it is in the terminal's table, too, which has 80 columns.
    needs: settings below evaluate without which it cannot be measured.
    """

    name: str
    title: str
    meaning: str
    values: Values | None = None
    bind: Callable[[Resources], Values] | None = None
    weights: Values | None = None
    transform: Callable[[float], float] = float
    format: str = ".1%"
    higher_is_better: bool = True
    served: bool = True
    by_question: bool = True
    brief: bool = False
    needs: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The title at the beginning of a line."""
        return self.title[0].upper() + self.title[1:]

    def gain(self, ours: float, theirs: float) -> float:
        """By how much our value is better than theirs; negative if it is worse."""
        return ours - theirs if self.higher_is_better else theirs - ours

    def text(self, value: float, *, signed: bool = False) -> str:
        return format(value, "+" * signed + self.format)


def of_texts(score: Score) -> Values:
    """Metric.values from the score of one answer against the expected one."""

    def values(answers: Answers) -> list[float]:
        return [float(score(*pair)) for pair in zip(answers.texts, answers.expected, strict=True)]

    return values


def of_whole(score: Score) -> Values:
    """The same of a score that an answer which was cut does not reach, whatever it begins with."""

    def values(answers: Answers) -> list[float]:
        found = of_texts(score)(answers)
        cut = answers.cut or [False] * len(found)
        return [
            value if math.isnan(value) else value * (not ended)
            for value, ended in zip(found, cut, strict=True)
        ]

    return values


def _json_schema(resources: Resources) -> Values:
    return of_whole(lambda answer, _: float(resources.json_schema(answer)))


def _pattern(resources: Resources) -> Values:
    return of_texts(lambda answer, _: float(bool(resources.pattern.fullmatch(answer.strip()))))


def _refusal(resources: Resources) -> Values:
    return of_texts(lambda answer, _: float(bool(resources.refusal.match(answer.strip()))))


METRICS: Table[Metric] = Table(
    "metric",
    Metric(
        name="exact_match",
        title="exact match",
        meaning="share of the answers that are the expected one, but for case and white space; an "
        "answer that was cut at the limit of tokens is not",
        values=of_whole(overlap.exact_match),
        brief=True,
    ),
    Metric(
        name="normalized_match",
        title="normalized match",
        meaning="exact match that ignores punctuation and English articles, too",
        values=of_whole(overlap.normalized_match),
    ),
    Metric(
        name="numeric_match",
        title="numeric match",
        meaning="share of the answers whose last number is that of the expected one, of those "
        "whose expected answer has a number",
        values=of_whole(overlap.numeric_match),
    ),
    Metric(
        name="token_f1",
        title="token F1",
        meaning="words in common with the expected answer, without case and white space",
        values=of_texts(overlap.token_f1),
        brief=True,
    ),
    Metric(
        name="rouge_l",
        title="ROUGE-L",
        meaning="longest common subsequence of words with the expected answer, as F1, without "
        "stemming",
        values=of_texts(overlap.rouge_l),
    ),
    Metric(
        name="chrf",
        title="chrF",
        meaning="n-grams of characters in common with the expected answer (sacreBLEU's chrF2, mean "
        "over the answers)",
        values=of_texts(overlap.chrf),
    ),
    Metric(
        name="bleu",
        title="BLEU",
        meaning="n-grams of words in common with the expected answer (sacreBLEU, mean over the "
        "answers)",
        values=of_texts(overlap.bleu),
    ),
    Metric(
        name="json_valid",
        title="valid JSON",
        meaning="share of the answers that are JSON, in a Markdown fence or not, of those whose "
        "expected answer is",
        values=of_whole(structure.json_valid),
    ),
    Metric(
        name="json_schema",
        title="JSON schema",
        meaning="share of the answers that are JSON and match evaluate.json_schema",
        bind=_json_schema,
        needs=("json_schema",),
    ),
    Metric(
        name="tool_call_match",
        title="tool calls",
        meaning="share of the answers with the expected tool calls, names and arguments, in any "
        "order, of those whose expected answer has some",
        values=of_texts(structure.tool_calls),
    ),
    Metric(
        name="pattern",
        title="pattern",
        meaning="share of the answers that match evaluate.pattern as a whole",
        bind=_pattern,
        needs=("pattern",),
    ),
    Metric(
        name="embedding_similarity",
        title="similarity",
        meaning="cosine of the embeddings of answer and expected answer, by evaluate.embedder",
        bind=lambda resources: resources.similarity,
        format=".3f",
        needs=("embedder",),
    ),
    Metric(
        name="judge_score",
        title="judge's score",
        meaning="score that the judge gives an answer by the rubric, 1 to 10 as 0 to 100 %",
        bind=lambda resources: resources.judge_scores,
    ),
    Metric(
        name="judge_wins",
        title="wins by the judge",
        meaning="share of the answers that the judge prefers to the base model's, asked in both "
        "orders; a tie, or two verdicts that disagree, count half",
        bind=lambda resources: resources.judge_wins,
    ),
    Metric(
        name="answer_loss",
        title="answer loss",
        meaning="nats per token of the expected answer (log-loss)",
        values=lambda answers: answers.losses,
        weights=lambda answers: answers.tokens,
        format=".3f",
        higher_is_better=False,
        served=False,
        brief=True,
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
        served=False,
    ),
    Metric(
        name="general_perplexity",
        title="general perplexity",
        meaning="perplexity on evaluate.general_text: what the model has forgotten raises it",
        values=lambda answers: answers.general_losses,
        weights=lambda answers: answers.general_tokens,
        transform=math.exp,
        format=".3f",
        higher_is_better=False,
        served=False,
        by_question=False,
        needs=("general_text",),
    ),
    Metric(
        name="refusal_rate",
        title="refusals",
        meaning="share of the answers that begin as a refusal does (evaluate.refusal_pattern)",
        bind=_refusal,
        higher_is_better=False,
    ),
    Metric(
        name="length",
        title="length",
        meaning="words of an answer",
        values=of_texts(overlap.length),
        format=".1f",
    ),
)
