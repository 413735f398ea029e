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
from pipeline.evaluation.metrics import METRICS, Metric, gate_metric
from pipeline.optimization.formats import FORMATS

_GREY, _GREEN = "#9aa0a6", "#76b900"


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


def columns() -> list[Column]:
    """Each metric; beside the gate's, its difference from the tuned model."""
    found = []
    for metric in METRICS.values():
        found.append(Column(metric.name, metric.title, metric, brief=metric.brief))
        if metric is gate_metric():
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
    figures: Mapping[str, Mapping[str, Estimate]],
    differences: Mapping[str, Estimate],
    failures: Sequence[str],
    beyond: Sequence[str],
    *,
    questions: int,
    method: str,
    beyond_limit: int,
    cut: Mapping[str, int],
) -> dict[str, Any]:
    """The report as JSON can hold it.

    figures: by model, then by the metric's name. differences: of the gate's metric, less the tuned
        model's.
    failures: why the gate refuses. beyond: why it would refuse a format that is only compared.
    method: what was trained, "adapter" or "full".
    beyond_limit: expected answers with more tokens than an answer may have.
    cut: each model's answers that reached the limit of tokens.
    """
    models = {}
    for model, estimates in figures.items():
        entry: dict[str, Any] = {name: asdict(estimate) for name, estimate in estimates.items()}
        if model in differences:
            entry[less_tuned(gate_metric())] = asdict(differences[model])
        models[model] = {**entry, "simulated": is_simulated(model), "cut": cut[model]}
    return {
        "questions": questions,
        "method": method,
        "expected_beyond_limit": beyond_limit,
        "confidence": CONFIDENCE,
        "models": models,
        "gate": {"passed": not failures, "failures": list(failures), "beyond": list(beyond)},
    }


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write report.json, report.md and accuracy.png."""
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    _draw(report["models"], folder / "accuracy.png")


def show(report: Mapping[str, Any]) -> None:
    """Print the table to the terminal, as far as its 80 columns hold it."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("model", no_wrap=True)
    first, *others = (column for column in columns() if column.brief)
    for column in (first, *others):
        table.add_column(column.title, justify="right", no_wrap=True)
    for model, figures in report["models"].items():
        cells = (column.cell(figures).partition(" (")[0] for column in others)
        table.add_row(label(model), first.cell(figures), *cells)
    get_console().print(table)
    for drop in report["gate"]["beyond"]:
        get_console().print(f"[yellow]compared only:[/] {drop}", soft_wrap=True)


def markdown(report: Mapping[str, Any]) -> str:
    """The table and the gate's verdict."""
    gate, shown = report["gate"], columns()
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
        *(f"- {metric.heading}: {metric.meaning}." for metric in METRICS.values()),
        "",
    ]
    return "\n".join(lines)


def _draw(models: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Bars of the gate's metric with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * len(models) + 1, 3.6), layout="constrained")
    axes = figure.add_subplot()
    metric, names = gate_metric(), list(models)
    value, low, high = (
        [100 * models[name][metric.name][key] for name in names] for key in ("value", "low", "high")
    )
    colours = [_GREY if name == "base" else _GREEN for name in names]
    shown = [label(name).replace(", ", "\n") for name in names]
    axes.bar(shown, value, color=colours, width=0.6)
    errors = [[v - a for v, a in zip(value, low, strict=True)]]
    errors.append([b - v for v, b in zip(value, high, strict=True)])
    axes.errorbar(shown, value, errors, fmt="none", capsize=3, elinewidth=1, ecolor="#333333")
    for place, (height, top) in enumerate(zip(value, high, strict=True)):
        axes.text(place, top + 2, f"{height:.1f}", ha="center", fontweight="bold")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(f"{metric.title}, % (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
