"""Settings of stage=evaluate: what is measured, and the gate that decides on it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from pipeline.config.endpoint import EndpointConfig
from pipeline.config.section import Batch, Count, Place, Section, Tokens
from pipeline.core.tables import table

BASE: Final = "base"
TUNED: Final = "tuned"
FORMAT: Final = "format"
SERVED: Final = "served"
CHAMPION: Final = "champion"
OWN = re.compile(r"(?P<file>[^:]+\.py):(?P<function>[A-Za-z_]\w*)")  # a metric of the user's own
Bound = Annotated[float, Field(ge=-1e9, le=1e9)]  # in the metric's own unit

# Settings of the gate of earlier versions, and what to give instead.
RETIRED = {
    "min_exact_match": "evaluate.gate.learned={metric:exact_match,min:0.6}",
    "max_served_drop": "evaluate.gate.served.margin=…",
    "max_drop": "evaluate.gate.format.margin=…",
}


class Condition(Section):
    """One condition of the gate. Fields have defaults here, since each condition is the user's."""

    metric: str | None = Field(
        None,
        min_length=1,
        description="Its name, or task.metric of a benchmark; null: the first of evaluate.metrics",
    )
    model: Literal["tuned", "format", "served"] = Field(
        TUNED,
        description="Whose value: the tuned model, the exported format (simulated), or the served "
        "engine",
    )
    tag: str | None = Field(None, min_length=1, description="Only questions with this tag")
    source: str | None = Field(None, min_length=1, description="Only questions of this file")
    language: str | None = Field(None, min_length=1, description="Only questions in this language")
    min: Bound | None = Field(None, description="The value must be at least this")
    max: Bound | None = Field(None, description="The value must be at most this")
    against: Literal["base", "tuned", "champion"] | None = Field(
        None, description="Whose value it is compared with, on the same questions"
    )
    margin: Bound | None = Field(
        None,
        description="How much worse than that it may be; negative: how much better it must be. "
        "null: 0, or what the format's record allows",
    )
    by: Literal["value", "interval", "test"] = Field(
        "value",
        description="What decides: the value; the worse end of its 95 % interval; or a paired test "
        "(one-sided, 5 %), which refuses only what is shown to be worse",
    )

    @model_validator(mode="after")
    def _is_one_question(self) -> "Condition":
        if self.against is None and self.min is None and self.max is None:
            raise ValueError("give min or max, or against")
        if self.against is not None and (self.min is not None or self.max is not None):
            raise ValueError("give min and max, or against with margin, not both")
        if self.against is None and self.margin is not None:
            raise ValueError("margin needs against=base, tuned or champion; or give min or max")
        if self.against is None and self.by == "test":
            raise ValueError("by=test compares: give against, or by=interval")
        if self.against == TUNED and self.model == TUNED:
            raise ValueError("the tuned model equals itself: give model=format or served")
        if self.against == CHAMPION and self.model != SERVED:
            raise ValueError("the champion is a served engine: give model=served")
        return self

    @property
    def slice(self) -> tuple[str, str] | None:
        """The kind and the name of the slice; None for all questions."""
        found = [(kind, name) for kind in SLICES if (name := getattr(self, kind)) is not None]
        return found[0] if found else None

    @field_validator("language")
    @classmethod
    def _one_slice(cls, language: str | None, info: ValidationInfo) -> str | None:
        given = [n for n in ("tag", "source") if info.data.get(n)] + ["language"] * bool(language)
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(given)}")
        return language


SLICES = ("tag", "source", "language")


class JudgeConfig(Section):
    """A language model that scores answers, behind any OpenAI endpoint."""

    endpoint: EndpointConfig
    rubric: Place | None = Field(
        description="File with the rubric of judge_score; null: correctness and completeness "
        "against the expected answer"
    )


class EvaluateConfig(Section):
    """Measurements on the test conversations."""

    max_new_tokens: Tokens = Field(
        description="Tokens of a generated answer; null: 256, or a quarter of engine.max_seq_len"
    )
    batch_size: Batch = Field(description="Answers that are generated at once")
    bootstrap_samples: int = Field(
        ge=100, le=1_000_000, description="Bootstrap samples behind each confidence interval"
    )
    metrics: tuple[str, ...] = Field(
        min_length=1,
        description="What is measured: names of the table, or file.py:function for one of your "
        "own. The first one ranks models in summaries",
    )
    json_schema: Place | None = Field(description="File with the JSON schema of metric json_schema")
    pattern: str | None = Field(
        min_length=1,
        description="Regular expression that an answer must match as a whole, for metric pattern",
    )
    refusal_pattern: str | None = Field(
        min_length=1,
        description="Regular expression of a refusal's beginning, for metric refusal_rate; null: "
        "common English phrases",
    )
    embedder: Place | None = Field(
        description="Folder of a sentence-embedding model, for metric embedding_similarity"
    )
    general_text: Place | None = Field(
        description="Text file on which metric general_perplexity shows what was forgotten"
    )
    judge: JudgeConfig
    benchmarks: tuple[str, ...] = Field(
        description="Tasks of lm-evaluation-harness that stage=benchmark asks the served engine"
    )
    benchmark_tasks: Place | None = Field(
        description="Folder with task files of your own for evaluate.benchmarks"
    )
    benchmark_limit: Count | None = Field(
        description="Questions of each of evaluate.benchmarks; null: all"
    )
    worst_rows: int = Field(ge=0, le=1_000, description="Worst answers that report.html shows")
    gate: Annotated[
        Mapping[str, Condition | None],
        WithJsonSchema({"type": "object", "form": "conditions by name; null leaves one out"}),
    ] = Field(
        description="Conditions that fail the run, as evaluate.gate.NAME={metric:token_f1,min:0.5}"
    )

    @field_validator("gate", mode="before")
    @classmethod
    def _no_retired_keys(cls, gate: Any) -> Any:
        for name in gate if isinstance(gate, Mapping) else ():
            if name in RETIRED and not isinstance(gate[name], Condition):
                raise ValueError(f"evaluate.gate.{name} is now a condition: give {RETIRED[name]}")
        return gate

    @field_validator("metrics")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not OWN.fullmatch(name):
                table("metric")[name]
        short = [name_of(name) for name in names]
        if again := next((name for name in short if short.count(name) > 1), None):
            raise ValueError(f"{again} is there twice: leave one out")
        if own := next(
            (n for n in names if OWN.fullmatch(n) and name_of(n) in table("metric")), ""
        ):
            raise ValueError(f"{own} has the name of a metric of the table: rename the function")
        return names

    @field_validator("pattern", "refusal_pattern")
    @classmethod
    def _is_an_expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"it is no regular expression ({error})") from None
        return pattern

    @model_validator(mode="after")
    def _belong_together(self) -> "EvaluateConfig":
        for name in self.measured:
            record = table("metric").get(name)
            for needed in record.needs if record else ():
                if _look_up(self, needed) is None:
                    raise ValueError(f"evaluate.metrics: {name} needs evaluate.{needed}: give it")
        for name, condition in self.gate.items():
            if condition is not None:
                self._check_condition(f"evaluate.gate.{name}", condition)
        return self

    def _check_condition(self, place: str, condition: Condition) -> None:
        metric = self.metric_of(condition)
        if self.is_benchmark(metric):
            if condition.model != SERVED or condition.against or condition.slice:
                raise ValueError(
                    f"{place}: a benchmark is asked of the served engine as a whole: give "
                    "model=served with min or max, and no slice"
                )
            return
        if metric not in self.measured:
            known = dict.fromkeys([*self.measured, *self.benchmarks, *table("metric")])
            choices = ", ".join(known)
            raise ValueError(f"{place}: there is no metric {metric}: choose from {choices}")
        record = table("metric").get(metric)
        if record and not record.served and condition.model == SERVED:
            raise ValueError(
                f"{place}: {metric} needs the model's probabilities, which a served engine does "
                "not give: choose a metric of answers, or model=tuned or format"
            )
        if record and not record.by_question and condition.slice:
            raise ValueError(f"{place}: {metric} has no questions, and so no slice")

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of all metrics: those of `metrics`, then those of the table that the gate names."""
        gate = [c.metric for c in self.gate.values() if c is not None and c.metric]
        listed = [name_of(name) for name in self.metrics]
        return tuple(dict.fromkeys([*listed, *(n for n in gate if n in table("metric"))]))

    @property
    def main(self) -> str:
        """The metric that ranks models in summaries."""
        return name_of(self.metrics[0])

    def metric_of(self, condition: Condition) -> str:
        """The name of a condition's metric."""
        return condition.metric or self.main

    def is_benchmark(self, metric: str) -> bool:
        """Whether a metric is one of a benchmark."""
        return metric not in self.measured and metric.partition(".")[0] in self.benchmarks

    def conditions(self, *models: str, against: str | None = None) -> dict[str, Condition]:
        """The conditions on some of tuned, format and served, by name; champion's apart.

        against: champion, for these alone.
        """
        return {
            name: condition
            for name, condition in self.gate.items()
            if condition is not None
            and condition.model in models
            and (condition.against == CHAMPION) == (against == CHAMPION)
        }

    def files(self) -> list[Path]:
        """Files and folders that decide what is measured, beside the data and the models."""
        own = [Path(m["file"]) for name in self.metrics if (m := OWN.fullmatch(name))]
        named = [self.json_schema, self.embedder, self.general_text, self.judge.rubric,
                 self.benchmark_tasks]  # fmt: skip
        return list(dict.fromkeys([*own, *(path for path in named if path is not None)]))


def name_of(metric: str) -> str:
    """The name under which a metric is reported: of one's own, the function's."""
    found = OWN.fullmatch(metric)
    return found["function"] if found else metric


def _look_up(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings
