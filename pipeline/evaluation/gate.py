"""The gate: a list of conditions, each on one metric of one model.

`stage=evaluate` decides the conditions on the tuned model and the exported format, before anything
is exported; `stage=benchmark` those on the engine as clients reach it; `stage=register` those
against the champion. Knows only values by question, and intervals.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.evaluate import (
    BASE,
    CHAMPION,
    FORMAT,
    SERVED,
    TUNED,
    Condition,
    EvaluateConfig,
)
from pipeline.evaluation.confidence import Estimate
from pipeline.evaluation.measure import Bootstrap, Measured
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.slices import names_of, places_of, words
from pipeline.optimization.formats import FORMATS

__all__ = ["BASE", "CHAMPION", "FORMAT", "SERVED", "TUNED", "Verdict", "check", "check_beyond"]

LEVEL = 0.05  # of the paired test, one-sided
_EQUAL = 1e-9  # a value of just the limit meets it, however it is rounded
ADVICE = {
    TUNED: "train longer (finetune.max_steps), or look at predictions.jsonl",
    FORMAT: "choose another format, or raise quantize.calibration.rows",
    SERVED: "build with more precision (engine.precision, quantize.format), set engine.sampling, "
    "or look at answers.jsonl",
}


@dataclass(frozen=True)
class Verdict:
    """What a condition decided. text: in words, without the condition's name."""

    name: str
    passed: bool
    text: str

    @property
    def line(self) -> str:
        """With the condition's name."""
        return f"evaluate.gate.{self.name}: {self.text}"

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "passed": self.passed, "text": self.text}


def check(
    settings: EvaluateConfig,
    metrics: Mapping[str, Metric],
    models: Mapping[str, Measured],
    shipped: str,
    bootstrap: Bootstrap,
    *,
    decided: tuple[str, ...],
    named: str = "",
    benchmarks: Mapping[str, Estimate] | None = None,
) -> list[Verdict]:
    """The verdicts of the conditions on some models, in their order.

    Args:
        models: by name: base, tuned, formats and served.
        shipped: the format that is exported.
        decided: which of tuned, format and served are decided now.
        named: the served engine, for messages.
        benchmarks: results of evaluate.benchmarks, by task.metric.
    """
    return [
        _benchmark(name, condition, benchmarks or {})
        if settings.is_benchmark(settings.metric_of(condition))
        else _verdict(
            name,
            condition,
            metrics[settings.metric_of(condition)],
            models,
            shipped if condition.model == FORMAT else condition.model,
            bootstrap,
            named,
        )
        for name, condition in settings.conditions(*decided).items()
    ]


def check_beyond(
    settings: EvaluateConfig,
    metrics: Mapping[str, Metric],
    models: Mapping[str, Measured],
    shipped: str,
    bootstrap: Bootstrap,
) -> list[str]:
    """Which formats that are only compared the gate would refuse, in words."""
    found = []
    for form in FORMATS:
        if form == shipped or form not in models:
            continue
        for name, condition in settings.conditions(FORMAT).items():
            metric = metrics[settings.metric_of(condition)]
            verdict = _verdict(name, condition, metric, models, form, bootstrap, "")
            if not verdict.passed:
                found.append(verdict.text)
    return found


def margin_of(condition: Condition, form: str) -> float:
    """How much worse a model may be. form: the format, of a condition on one."""
    if condition.margin is not None:
        return condition.margin
    return FORMATS[form].max_drop if condition.model == FORMAT else 0.0


def _verdict(
    name: str,
    condition: Condition,
    metric: Metric,
    models: Mapping[str, Measured],
    model: str,
    bootstrap: Bootstrap,
    named: str,
) -> Verdict:
    ours, slice = models[model], condition.slice
    what = f"{metric.title} of {_title(condition, model, named)}{words(slice)}"
    if metric.name in ours.failures:
        return Verdict(name, False, f"the {what} was not measured: {ours.failures[metric.name]}")
    places = places_of(slice, ours.answers.asked) if slice else None
    if slice and not places:
        known = ", ".join(names_of(slice[0], ours.answers.asked)[:12]) or "no question has one"
        return Verdict(
            name, False, f"no test question has the {slice[0]} {slice[1]}: choose from {known}"
        )
    value = bootstrap.estimate(metric, ours, places)
    if value is None:
        return Verdict(name, False, f"the {what} applies to none of the test questions")
    if condition.against is None:
        return _absolute(name, condition, metric, what, value)
    other = models[condition.against]
    margin = margin_of(condition, model)
    found = bootstrap.difference(metric, ours, other, slice, margin=margin)
    if found is None:
        return Verdict(name, False, f"the {what} cannot be compared with the {condition.against}")
    worst = found.low if metric.higher_is_better else found.high
    by = {
        "value": metric.gain(found.value, 0) >= -margin - _EQUAL,
        "interval": metric.gain(worst, 0) >= -margin - _EQUAL,
        "test": found.worse <= 1 - LEVEL,
    }
    text = (
        f"the {what} is {metric.text(value.value)}, {_difference(metric, found)} that of the "
        f"{_other(condition.against)} on {_counted(metric, found)}, and its margin is "
        f"{_margin(metric, margin)}"
    )
    text += {
        "value": "",
        "interval": " at the worse end of the interval",
        "test": f"; the share of resamples that are worse than that is {found.worse:.1%}, and more "
        f"than {1 - LEVEL:.0%} is refused",
    }[condition.by]
    passed = by[condition.by]
    return Verdict(name, passed, text if passed else f"{text}: {ADVICE[condition.model]}")


def _counted(metric: Metric, found: Estimate) -> str:
    return f"{found.questions} {'questions' if metric.by_question else 'passages'}"


def _absolute(
    name: str, condition: Condition, metric: Metric, what: str, value: Estimate
) -> Verdict:
    low, high = (value.low, value.high) if condition.by == "interval" else (value.value,) * 2
    wanted = []
    passed = True
    for limit, sign, met in (
        (condition.min, "at least", condition.min is None or low >= condition.min - _EQUAL),
        (condition.max, "at most", condition.max is None or high <= condition.max + _EQUAL),
    ):
        if limit is not None:
            wanted.append(f"{sign} {metric.text(limit)}")
            passed = passed and met
    shown = metric.text(value.value)
    if condition.by == "interval":
        shown += f" ({metric.text(value.low)} to {metric.text(value.high)})"
    text = f"the {what} is {shown} on {_counted(metric, value)}, and {' and '.join(wanted)} is "
    text += "required" + " of the whole interval" * (condition.by == "interval")
    return Verdict(name, passed, text if passed else f"{text}: {ADVICE[condition.model]}")


def _benchmark(name: str, condition: Condition, results: Mapping[str, Estimate]) -> Verdict:
    key = str(condition.metric)
    found = results.get(key)
    if found is None:  # the task alone: its first figure
        found = next((v for k, v in results.items() if k.startswith(f"{key}.")), None)
    if found is None:
        known = ", ".join(results) or "no benchmark gave a result"
        return Verdict(name, False, f"there is no result {key}: choose from {known}")
    shape = Metric(key, key, "", format=".3f")
    return _absolute(name, condition, shape, f"{key} of the served engine", found)


def _title(condition: Condition, model: str, named: str) -> str:
    if condition.model == FORMAT:
        return f"{model}, simulated" if FORMATS[model].quantized else f"the {model} model"
    if condition.model == SERVED:
        return f"the served engine{f' ({named})' * bool(named)}"
    return "the tuned model"


def _other(against: str) -> str:
    return f"{against} model" if against in (BASE, TUNED) else against


def _difference(metric: Metric, found: Estimate) -> str:
    """As in "2.0% (-1.0% to 5.0%) above", where signs are those of ours less theirs."""
    low, high = (metric.text(v, signed=True) for v in (found.low, found.high))
    if abs(found.value) <= _EQUAL:
        return f"as much as ({low} to {high})"
    side = "above" if found.value > 0 else "below"
    return f"{metric.text(abs(found.value))} ({low} to {high}) {side}"


def _margin(metric: Metric, margin: float) -> str:
    return metric.text(margin) if margin else "0"
