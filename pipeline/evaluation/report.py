"""The report of an evaluation: as JSON, as a table in Markdown and in the terminal, as bars.

Knows figures and intervals; neither models nor questions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.core.console import get_console
from pipeline.evaluation.metrics import CONFIDENCE, Estimate

TITLES = {
    "exact_match": "exact match",
    "exact_match_less_tuned": "against tuned",
    "token_f1": "token F1",
    "answer_loss": "answer loss",
    "perplexity": "perplexity",
}
_SHARES = ("exact_match", "exact_match_less_tuned", "token_f1")
_GREY, _GREEN = "#9aa0a6", "#76b900"


def build(
    figures: Mapping[str, Mapping[str, Estimate]],
    differences: Mapping[str, Estimate],
    failures: Sequence[str],
    beyond: Sequence[str],
    *,
    questions: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The report as JSON can hold it.

    figures: by model, then by name as in TITLES. differences: exact match less the tuned model's.
    failures: why the gate refuses. beyond: why it would refuse a format that is only compared.
    seconds: that each model took.
    """
    models = {}
    for model, estimates in figures.items():
        entry: dict[str, Any] = {name: asdict(estimate) for name, estimate in estimates.items()}
        if model in differences:
            entry["exact_match_less_tuned"] = asdict(differences[model])
        models[model] = {**entry, "seconds": seconds[model]}
    return {
        "questions": questions,
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
    for title in list(TITLES.values())[:-1]:
        table.add_column(title, justify="right", no_wrap=True)
    for model, figures in report["models"].items():
        exact, *others, _ = _cells(figures)
        table.add_row(model, exact, *(cell.partition(" (")[0] for cell in others))
    get_console().print(table)
    for drop in report["gate"]["beyond"]:
        get_console().print(f"[yellow]compared only:[/] {drop}", soft_wrap=True)


def markdown(report: Mapping[str, Any]) -> str:
    """The table and the gate's verdict."""
    gate = report["gate"]
    verdict = "passed" if gate["passed"] else "refused: " + "; ".join(gate["failures"])
    lines = [
        f"# Evaluation on {report['questions']} test questions",
        "",
        "| " + " | ".join(["model", *TITLES.values()]) + " |",
        "|---" + "|---:" * len(TITLES) + "|",
        *(
            "| " + " | ".join([model, *_cells(figures)]) + " |"
            for model, figures in report["models"].items()
        ),
        "",
        f"Gate {verdict}.",
        "",
        *(line for drop in gate["beyond"] for line in (f"Compared only: {drop}.", "")),
        "Greedy answers. In brackets 95 % bootstrap intervals over the questions. Exact match and "
        "F1 ignore case and white space; loss is in nats per token of the expected answer, "
        "perplexity its exponential.",
        "",
    ]
    return "\n".join(lines)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    """Figure and interval of each column, of one model."""
    cells = []
    for name in TITLES:
        estimate = figures.get(name)
        if estimate is None:
            cells.append("")
            continue
        scale, form = (100, "+.1f" if "less" in name else ".1f") if name in _SHARES else (1, ".3f")
        value, low, high = (f"{scale * estimate[k]:{form}}" for k in ("value", "low", "high"))
        cells.append(f"{value}{' %' if name in _SHARES else ''} ({low} to {high})")
    return cells


def _draw(models: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Bars of exact match with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * len(models) + 1, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = list(models)
    value, low, high = (
        [100 * models[name]["exact_match"][key] for name in names]
        for key in ("value", "low", "high")
    )
    colours = [_GREY if name == "base" else _GREEN for name in names]
    axes.bar(names, value, color=colours, width=0.6)
    errors = [[v - a for v, a in zip(value, low, strict=True)]]
    errors.append([b - v for v, b in zip(value, high, strict=True)])
    axes.errorbar(names, value, errors, fmt="none", capsize=3, elinewidth=1, ecolor="#333333")
    for place, (height, top) in enumerate(zip(value, high, strict=True)):
        axes.text(place, top + 2, f"{height:.1f}", ha="center", fontweight="bold")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("exact match, % (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
