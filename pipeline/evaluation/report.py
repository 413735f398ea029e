"""The report of an evaluation: as JSON, as a table in Markdown and in the terminal, as bars.

Knows figures and intervals; neither models nor questions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core.console import get_console
from pipeline.evaluation.confidence import CONFIDENCE, Estimate
from pipeline.evaluation.gate import Verdict
from pipeline.evaluation.metrics import METRICS, Metric
from pipeline.optimization.formats import FORMATS

_GREY, _GREEN = "#9aa0a6", "#76b900"
MOST_SLICES = 30  # in the report; the gate may name any


@dataclass(frozen=True)
class Column:
    """Of the tables. signed: a difference. brief: in the terminal, too."""

    name: str
    title: str
    metric: Metric
    signed: bool = False
    brief: bool = True

    def cell(self, figures: Mapping[str, Any]) -> str:
        """A model's figure and its interval; empty if it has none."""
        estimate = figures.get(self.name)
        return "" if estimate is None else interval(self.metric, estimate, signed=self.signed)


def interval(metric: Metric, estimate: Mapping[str, float], *, signed: bool = False) -> str:
    """A figure and its interval, as in 93.0 % (90.1 to 95.4). signed: it is a difference."""
    value, low, high = (
        metric.text(estimate[key], signed=signed) for key in ("value", "low", "high")
    )
    unit = " %" * value.endswith("%")
    value, low, high = (text.removesuffix("%") for text in (value, low, high))
    return f"{value}{unit} ({low} to {high})"


def facts(metric: Metric) -> dict[str, Any]:
    """What a report says of a metric, so that whoever reads it can show the metric's values."""
    return {
        "name": metric.name,
        "title": metric.title,
        "meaning": metric.meaning,
        "format": metric.format,
        "higher_is_better": metric.higher_is_better,
    }


def metric_of(known: Mapping[str, Any]) -> Metric:
    """The metric of such facts; of an earlier version's report, which has none, exact match."""
    if not known:
        return METRICS["exact_match"]
    return Metric(
        known["name"],
        known["title"],
        known.get("meaning", ""),
        format=known["format"],
        higher_is_better=known["higher_is_better"],
    )


def main_metric(report: Mapping[str, Any]) -> Metric:
    """The metric that ranks models: the first of evaluate.metrics when the report was made."""
    return metric_of(report.get("metric") or {})


def columns(report: Mapping[str, Any]) -> list[Column]:
    """Each metric; beside the main one its difference from the tuned model."""
    main, found = main_metric(report), []
    for name, known in report["metrics"].items():
        metric = metric_of(known)
        brief = name == main.name or (name in METRICS and METRICS[name].brief)
        found.append(Column(name, metric.title, metric, brief=brief))
        if name == main.name:
            found.append(Column(less_tuned(metric), "against tuned", metric, signed=True))
    return found


def less_tuned(metric: Metric) -> str:
    """The name of a metric's difference from the tuned model in the report."""
    return f"{metric.name}_less_tuned"


def is_simulated(model: str) -> bool:
    """Whether a model of the report is a format whose rounding was simulated, not an engine."""
    return model in FORMATS and FORMATS[model].quantized


def label(model: str) -> str:
    """The name of a model of the report for people, as in "fp8, simulated"."""
    return f"{model}, simulated" if is_simulated(model) else model


def key(model: str) -> str:
    """The same in the name of a metric."""
    return f"{model}_simulated" if is_simulated(model) else model


def build(
    metrics: Mapping[str, Metric],
    main: str,
    figures: Mapping[str, Mapping[str, Estimate]],
    differences: Mapping[str, Estimate],
    verdicts: Sequence[Verdict],
    beyond: Sequence[str],
    *,
    questions: int,
    method: str,
    beyond_limit: int,
    cut: Mapping[str, int],
    failures: Mapping[str, str] | None = None,
    slices: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """The report as JSON can hold it.

    metrics: what was measured. main: the name of the one that ranks models.
    figures: by model, then by the metric's name. differences: of the main metric, less the tuned
        model's.
    verdicts: of the gate's conditions. beyond: why it would refuse a format that is only compared.
    method: what was trained, "adapter" or "full".
    beyond_limit: expected answers with more tokens than an answer may have.
    cut: each model's answers that reached the limit of tokens.
    failures: why a metric was not measured, by its name.
    slices: figures of slices. more: further parts.
    """
    models = {}
    for model, estimates in figures.items():
        entry: dict[str, Any] = {name: asdict(estimate) for name, estimate in estimates.items()}
        if model in differences:
            entry[less_tuned(metrics[main])] = _plain(differences[model])
        models[model] = {**entry, "simulated": is_simulated(model), "cut": cut[model]}
    refused = [verdict.line for verdict in verdicts if not verdict.passed]
    return {
        "questions": questions,
        "method": method,
        "expected_beyond_limit": beyond_limit,
        "confidence": CONFIDENCE,
        "metric": facts(metrics[main]),
        "metrics": {name: facts(metric) for name, metric in metrics.items()},
        "models": models,
        "failures": dict(failures or {}),
        "slices": list(slices),
        "gate": {
            "passed": not refused,
            "failures": refused,
            "beyond": list(beyond),
            "conditions": [verdict.as_json() for verdict in verdicts],
        },
        **more,
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "questions")}


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write report.json, report.md and accuracy.png."""
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    _draw(report, folder / "accuracy.png")


def show(report: Mapping[str, Any]) -> None:
    """Print the table to the terminal, as far as its 80 columns hold it."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("model", no_wrap=True)
    first, *others = (column for column in columns(report) if column.brief)
    for column in (first, *others):
        table.add_column(column.title, justify="right", no_wrap=True)
    for model, figures in report["models"].items():
        cells = (column.cell(figures).partition(" (")[0] for column in others)
        table.add_row(label(model), first.cell(figures), *cells)
    get_console().print(table)
    if kept := forgotten(report["models"]):
        get_console().print(f"general perplexity, which forgetting raises: {kept}", soft_wrap=True)
    for drop in report["gate"]["beyond"]:
        get_console().print(f"[yellow]compared only:[/] {drop}", soft_wrap=True)


def forgotten(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The general perplexity of each model, as in "base 18.1, tuned 20.0"; "" without it.

    models: figures by metric, by the model's name.
    """
    metric = METRICS["general_perplexity"]
    values = {label(name): figures.get(metric.name) for name, figures in models.items()}
    return ", ".join(f"{name} {found['value']:.1f}" for name, found in values.items() if found)


def markdown(report: Mapping[str, Any]) -> str:
    """The table and the gate's verdict."""
    gate, shown = report["gate"], columns(report)
    verdict = "passed" if gate["passed"] else "refused: " + "; ".join(gate["failures"])
    lines = [
        f"# Evaluation on {report['questions']} test questions",
        "",
        "| " + " | ".join(["model", *(column.title for column in shown)]) + " |",
        "|---" + "|---:" * len(shown) + "|",
        *(
            "| " + " | ".join([label(model), *(column.cell(figures) for column in shown)]) + " |"
            for model, figures in report["models"].items()
        ),
        "",
        f"Gate {verdict}.",
        "",
        *(
            f"- {condition['name']}: {'passed' if condition['passed'] else 'refused'}: "
            f"{condition['text']}"
            for condition in gate["conditions"]
        ),
        "",
        *_slices(report),
        *(line for drop in gate["beyond"] for line in (f"Compared only: {drop}.", "")),
        "Greedy answers. In brackets 95 % bootstrap intervals over the questions. A simulated "
        "format is the tuned model, rounded as the format rounds. What the served engine answers "
        "is in the report of stage=benchmark.",
        "",
        *(
            f"{label(model)}: {figures['cut']} answers reached evaluate.max_new_tokens."
            for model, figures in report["models"].items()
            if figures["cut"]
        ),
        "",
        *(f"{name} was not measured: {why}." for name, why in report["failures"].items()),
        *_judge(report.get("judge")),
        *(
            f"- {metric.heading}: {metric.meaning}."
            for metric in map(metric_of, report["metrics"].values())
        ),
        "",
    ]
    return "\n".join(lines)


def _slices(report: Mapping[str, Any]) -> list[str]:
    """A table of the main metric by slice; nothing if there is one slice only."""
    if not report["slices"]:
        return []
    metric, models = main_metric(report), list(report["models"])
    head = ["slice", "questions", *map(label, models)]
    lines = [f"## {metric.heading} by slice", "", "| " + " | ".join(head) + " |",
             "|---" + "|---:" * (len(head) - 1) + "|"]  # fmt: skip
    for part in report["slices"]:
        cells = [
            interval(metric, part["models"][model]) if part["models"].get(model) else ""
            for model in models
        ]
        name = f"{part['kind']} {part['name']}".replace("|", "\\|")
        lines.append("| " + " | ".join([name, str(part["questions"]), *cells]) + " |")
    return [*lines, ""]


def _judge(judge: Mapping[str, Any] | None) -> list[str]:
    """What the judge did, in a sentence."""
    return [f"{judge_words(judge)}.", ""] if judge else []


def judge_words(judge: Mapping[str, Any]) -> str:
    """What the judge was asked, how far it agrees with itself, and what it used."""
    words = f"Judge {judge.get('model')}: {judge['asked']} verdicts, {judge['unread']} answers "
    words += "without a verdict that can be read"
    if judge["agreement"] is not None:
        words += (
            f"; the same verdict in both orders for {judge['agreement']:.1%} of "
            f"{judge['pairs']} pairs"
        )
    return f"{words}; {judge.get('tokens', 0):,} tokens, {judge.get('cost')} spent"


def _draw(report: Mapping[str, Any], file: Path) -> None:
    """Bars of the main metric with their intervals."""
    from matplotlib.figure import Figure

    metric = main_metric(report)
    models = {name: f[metric.name] for name, f in report["models"].items() if metric.name in f}
    figure = Figure(figsize=(1.1 * len(models) + 1, 3.6), layout="constrained")
    axes = figure.add_subplot()
    share, names = metric.format.endswith("%"), list(models)
    scale = 100 if share else 1
    value, low, high = (
        [scale * models[name][key] for name in names] for key in ("value", "low", "high")
    )
    colours = [_GREY if name == "base" else _GREEN for name in names]
    shown = [label(name).replace(", ", "\n") for name in names]
    axes.bar(shown, value, color=colours, width=0.6)
    errors = [[v - a for v, a in zip(value, low, strict=True)]]
    errors.append([b - v for v, b in zip(value, high, strict=True)])
    axes.errorbar(shown, value, errors, fmt="none", capsize=3, elinewidth=1, ecolor="#333333")
    room = 2 if share else 0.02 * max([1e-9, *high])
    for place, (height, top) in enumerate(zip(value, high, strict=True)):
        text = f"{height:.1f}" if share else metric.text(height)
        axes.text(place, top + room, text, ha="center", fontweight="bold")
    if share and min(low, default=0) >= 0:
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(f"{metric.title}{', %' * share} (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
