"""What a person reads first in MLflow: key figures of a pipeline run, and descriptions of runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow.entities import Run

STAGE = "mlflow.pipeline.stage"


def figures_of(
    stage: str, figures: Mapping[str, float], *, reused: bool
) -> Iterator[tuple[str, float]]:
    """A stage's final figures as they are shown on the parent run, in sections of the charts."""
    for name, value in figures.items():
        if not name.startswith("stage/"):
            yield f"{stage}/{name}", value
        elif not reused:  # time and memory were another run's
            yield f"{name.removeprefix('stage/')}/{stage}", value


def of_stage(stage: str, end: Mapping[str, Any]) -> str:
    """Markdown: why it failed, or what it made and where that is."""
    lines = []
    if end.get("error"):
        lines.append(f"**{end['status'].lower()}**: {end['error']}")
    if end.get("path"):
        made = "was there already, from an earlier run" if end.get("reused") else "made by this run"
        lines.append(f"{end['kind']}, {made}: `{end['path']}` (sha256 `{end['digest'][:12]}`)")
    return "\n\n".join(lines) or stage


def of_pipeline(stages: Sequence[Run]) -> str:
    """Markdown: a line a stage, with its time and its figures."""
    lines = ["| stage | | seconds | figures |", "|---|---|--:|---|"]
    for run in stages:
        place = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        state = "reused" if run.data.tags.get("reused") else run.info.status.lower()
        seconds = f"{run.data.metrics.get('stage/seconds', math.nan):.1f}"
        figures = {k: v for k, v in run.data.metrics.items() if not k.startswith("stage/")}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(figures.items())[:6])
        lines.append(f"| [{run.data.tags[STAGE]}]({place}) | {state} | {seconds} | {shown} |")
    return "\n".join(lines)
