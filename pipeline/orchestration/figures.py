"""Figures of the stages as small files, which dvc.yaml declares as metrics and plots.

    artifacts/metrics/<subject>.json     dvc metrics show, metrics diff, exp show
    artifacts/plots/<plot>.json          dvc plots show, plots diff

They are made from an artifact's manifest and reports, and lie beside the artifacts: no artifact
differs because of them. DVC keeps each version of them in its cache, so that it can compare commits
and experiments. Knows what DVC reads, and nothing of DVC itself.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.artifact import Artifact
from pipeline.evaluation.report import key, main_metric

METRICS, PLOTS = "metrics", "plots"  # folders below the artifacts
Figures = Mapping[str, Any]


def write_figures(folder: Path, made: Artifact) -> None:
    """Write the files of a stage, where they differ.

    folder: of the artifacts. A report that cannot be read, or a full disk, leaves them as they are:
    the artifact is whole, and DVC says what is missing.
    """
    writer = WRITERS.get(made.manifest.stage)
    if writer is None:
        return
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        for name, content in writer(made).items():
            _write(folder / name, content)


def files_of(stage: str) -> tuple[str, ...]:
    """The files of a stage, below the folder of artifacts."""
    return FILES.get(stage, ())


def _write(file: Path, content: object) -> None:
    text = json.dumps(content, indent=1) + "\n"
    if not file.is_file() or file.read_text() != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(file)


def _data(made: Artifact) -> Figures:
    return {"metrics/data.json": _chosen(made, ("train_rows", "test_rows", "rows_rejected"))}


def _training(made: Artifact) -> Figures:
    names = ("train_loss", "validation_loss", "steps", "tokens_per_second")
    curve = _read(made, "curve.json") or []
    checked = [p for p in curve if p.get("validation_loss") is not None]
    return {
        "metrics/training.json": _chosen(made, names),
        "plots/training_loss.json": [{"step": p["step"], "training": p["loss"]} for p in curve],
        "plots/validation_loss.json": [
            {"step": p["step"], "validation": p["validation_loss"]} for p in checked
        ],
    }


def _evaluation(made: Artifact) -> Figures:
    """The main metric of each model. `dvc metrics show` has a column for each figure of each file,
    so a file has few; the reports have all."""
    report = _read(made, "report.json")
    main = main_metric(report).name
    models: Mapping[str, Mapping[str, Any]] = report["models"]
    values = {key(name): found[main]["value"] for name, found in models.items() if main in found}
    return {
        "metrics/evaluation.json": {main: values},
        "plots/accuracy.json": [
            {"model": key(name), **{part: figures[main][part] for part in ("value", "low", "high")}}
            for name, figures in models.items()
            if main in figures
        ],
    }  # fmt: skip


def _serving(made: Artifact) -> Figures:
    report = _read(made, "report.json")
    served, loads = report["served"], report["loads"]
    main = main_metric(served).name
    plotted = ("output_tokens_per_second", "first_token_ms_p50", "first_token_ms_p95",
               "latency_ms_p50", "latency_ms_p95")  # fmt: skip
    return {
        "metrics/serving.json": {
            main: {"served": served[main]["value"]},
            "peak_memory_mib": report["peak_memory_mib"],
            f"at_{loads[-1]['at_once']}": {
                name: loads[-1][name] for name in ("latency_ms_p95", "output_tokens_per_second")
            },
        },
        "plots/latency.json": [
            {"requests_at_once": load["at_once"], **{name: load[name] for name in plotted}}
            for load in loads
        ],
    }


def _chosen(made: Artifact, names: Sequence[str]) -> dict[str, float]:
    figures = made.manifest.metrics
    found = {name: figures[name] for name in names if name in figures}
    return {name: int(value) if value.is_integer() else value for name, value in found.items()}


def _read(made: Artifact, name: str) -> Any:
    return json.loads((made.path / name).read_text())


WRITERS: Mapping[str, Callable[[Artifact], Figures]] = {
    "prepare": _data,
    "finetune": _training,
    "evaluate": _evaluation,
    "benchmark": _serving,
}
# The same files by stage, as dvc.yaml declares them; a test compares.
FILES: Mapping[str, tuple[str, ...]] = {
    "prepare": ("metrics/data.json",),
    "finetune": ("metrics/training.json", "plots/training_loss.json", "plots/validation_loss.json"),
    "evaluate": ("metrics/evaluation.json", "plots/accuracy.json"),
    "benchmark": ("metrics/serving.json", "plots/latency.json"),
}
