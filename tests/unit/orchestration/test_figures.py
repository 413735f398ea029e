"""Metrics and plots that DVC shows: made from artifacts, beside them, few and readable."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.artifact import open_artifact
from pipeline.core.paths import EXAMPLE
from pipeline.orchestration import figures
from tests.made_artifacts import make_artifact

METRIC = {"name": "exact_match", "title": "exact match", "format": ".1%", "higher_is_better": True}
LOAD = {"output_tokens_per_second": 100.0, "first_token_ms_p50": 3.0, "first_token_ms_p95": 5.0,
        "latency_ms_p50": 20.0, "latency_ms_p95": 30.0, "requests_per_second": 4.0}  # fmt: skip


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def make(folder: Path) -> None:
    curve = [{"step": 1, "loss": 7.9, "validation_loss": None},
             {"step": 2, "loss": 1.5, "validation_loss": 1.75}]  # fmt: skip
    report = {"metric": METRIC, "metrics": {"exact_match": METRIC},
              "models": {"base": {"exact_match": estimate(0.1)},
                         "tuned": {"exact_match": estimate(0.9)},
                         "fp8": {"exact_match": estimate(0.8)}}}  # fmt: skip
    served = {"metric": METRIC, "exact_match": estimate(0.85)}
    benchmark = {"served": served, "peak_memory_mib": 250.0,
                 "loads": [{"at_once": n, **LOAD} for n in (1, 16)]}  # fmt: skip
    metrics = {"prepare": {"train_rows": 900, "test_rows": 130, "rows_rejected": 7, "other": 1},
               "finetune": {"train_loss": 0.1, "steps": 2, "tokens": 5}}  # fmt: skip
    files: dict[str, dict[str, Any]] = {
        "prepare": {"data.txt": ""},
        "finetune": {"curve.json": curve},
        "evaluate": {"report.json": report},
        "benchmark": {"report.json": benchmark},
        "merge": {"data.txt": ""},
    }
    for stage, content in files.items():
        made = make_artifact(folder, stage, "any", metrics=metrics.get(stage),
                             files={n: json.dumps(c) for n, c in content.items()})  # fmt: skip
        figures.write_figures(folder, made)


def test_figures_of_every_stage(tmp_path: Path) -> None:
    make(tmp_path)
    found = {
        file.relative_to(tmp_path).as_posix(): json.loads(file.read_text())
        for folder in ("metrics", "plots")
        for file in sorted((tmp_path / folder).iterdir())
    }
    assert set(found) == {name for names in figures.FILES.values() for name in names}
    assert found["metrics/data.json"] == {"train_rows": 900, "test_rows": 130, "rows_rejected": 7}
    assert found["metrics/training.json"] == {"train_loss": 0.1, "steps": 2}
    scores = {"base": 0.1, "tuned": 0.9, "fp8_simulated": 0.8}
    assert found["metrics/evaluation.json"] == {"exact_match": scores}
    assert found["metrics/serving.json"] == {
        "exact_match": {"served": 0.85},
        "peak_memory_mib": 250.0,
        "at_16": {"latency_ms_p95": 30.0, "output_tokens_per_second": 100.0},
    }
    assert found["plots/training_loss.json"][1] == {"step": 2, "training": 1.5}
    assert found["plots/validation_loss.json"] == [{"step": 2, "validation": 1.75}]
    assert found["plots/accuracy.json"][2]["model"] == "fp8_simulated"
    assert found["plots/latency.json"][1]["requests_at_once"] == 16


def test_no_artifact_changes_and_the_same_figures_are_not_written_again(tmp_path: Path) -> None:
    make(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    for stage in figures.FILES:
        figures.write_figures(tmp_path, open_artifact(tmp_path / stage))
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert {file: after[file] for file in before if ".verified" not in file.parts} == {
        file: time for file, time in before.items() if ".verified" not in file.parts
    }


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"models": 1}'])
def test_a_report_without_figures_is_no_failure(tmp_path: Path, content: str) -> None:
    for stage in ("evaluate", "benchmark"):
        made = make_artifact(tmp_path, stage, "any", files={"report.json": content})
        figures.write_figures(tmp_path, made)
    assert not (tmp_path / "metrics").exists()


def test_dvc_yaml_declares_each_file_once_and_caches_it() -> None:
    declared = yaml.safe_load((EXAMPLE / "dvc.yaml").read_text())
    for stage, entry in declared["stages"].items():
        cached = {
            name: facts
            for part in ("outs", "metrics", "plots")
            for each in entry.get(part, ())
            for name, facts in each.items()
            if facts.get("cache", True)
        }
        assert set(cached) == {f"artifacts/{name}" for name in figures.files_of(stage)}, stage
        assert all(facts == {"persist": True} for facts in cached.values())
    plotted = {name for plot in declared["plots"] for entry in plot.values() for name in entry["y"]}
    assert plotted == {
        f"artifacts/{name}"
        for names in figures.FILES.values()
        for name in names
        if "plots/" in name
    }
