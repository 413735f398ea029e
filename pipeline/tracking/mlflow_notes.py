"""The text that users see first in MLflow: descriptions of runs, and key metrics."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlflow.entities import Run

from pipeline.core.console import natural
from pipeline.core.tables import table

STAGE = "mlflow.pipeline.stage"  # tag
METRICS_PARAM = "evaluate.metrics"
FIGURES = 6
GAP = "\u2003"  # MLflow's tables have no space between columns


def figures_of(
    stage: str, figures: Mapping[str, float], *, reused: bool
) -> Iterator[tuple[str, float]]:
    """A stage's final metrics under their names on the parent run, which group the charts."""
    for name, value in figures.items():
        if not name.startswith("stage/"):
            yield f"{stage}/{name}", value
        elif not reused:  # time and memory belong to the earlier run
            yield f"{name.removeprefix('stage/')}/{stage}", value


def of_stage(stage: str, end: Mapping[str, Any]) -> str:
    """Markdown: the error, or the artifact and its path."""
    lines = []
    if end.get("error"):
        lines.append(f"**{end['status'].lower()}**: {end['error']}")
    if end.get("path"):
        made = "reused from an earlier run" if end.get("reused") else "made by this run"
        lines.append(f"{end['kind']}, {made}: `{end['path']}` (sha256 `{end['digest'][:12]}`)")
    return "\n\n".join(lines) or stage


def of_pipeline(stages: Sequence[Run], registered: Mapping[str, Any] | None) -> str:
    """Markdown: the models' scores, then one line per stage with its time and metrics."""
    lines, metric = [], _main_metric(stages)
    prefix = f"{metric.name}/"
    scores = {
        name.removeprefix(prefix): value
        for run in stages
        if run.data.tags[STAGE] in ("evaluate", "benchmark")
        for name, value in run.data.metrics.items()
        if name.startswith(prefix)
    }
    if scores:
        ranked = sorted(scores.items(), key=lambda item: metric.gain(item[1], 0))
        shown = ", ".join(
            f"{name.replace('_simulated', ' (simulated)')} **{metric.text(value)}**"
            for name, value in ranked
        )
        lines += [f"{metric.heading} on held-out questions: {shown}", ""]
    if registered:
        lines += [
            f"Registered as [{registered['name']} version {registered['version']}]"
            f"(#/models/{registered['name']}/versions/{registered['version']}), "
            f"{' and '.join(registered['aliases'])}: {registered['reason']}",
            "",
        ]
    lines += ["| stage | seconds | |", "|---|--:|---|"]
    for run in stages:
        place = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        seconds = run.data.metrics.get("stage/seconds")
        time = "" if seconds is None else f"{seconds:.1f}"
        time = "reused" if run.data.tags.get("reused") else time
        state = run.info.status
        result = _figures(run) if state == "FINISHED" else f"**{state.lower()}**"
        lines.append(f"| [{run.data.tags[STAGE]}]({place}) {GAP} | {time} {GAP} | {result} |")
    return "\n".join(lines)


def _figures(run: Run) -> str:
    """The first few metrics, without time, memory, and what register copies from other stages."""
    hidden = ("stage", *(("benchmark",) if run.data.tags[STAGE] == "register" else ()))
    ranked = sorted(run.data.metrics.items(), key=lambda item: natural(item[0]))
    shown = [f"{name} {value:.4g}" for name, value in ranked if not name.startswith(hidden)]
    return ", ".join(shown[:FIGURES])


def _main_metric(stages: Sequence[Run]) -> Any:
    """The metric that ranks models: the first of evaluate.metrics of the run's evaluation."""
    named = next((p for run in stages if (p := run.data.params.get(METRICS_PARAM))), "")
    known = table("metric")
    try:
        name = str(json.loads(named)[0]).rpartition(":")[2]
    except (ValueError, IndexError, TypeError):
        name = "exact_match"
    if name in known:
        return known[name]
    return replace(known["exact_match"], name=name, title=name.replace("_", " "), format=".3f")
