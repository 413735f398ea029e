"""The scores by question that a version of the registry was registered with."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

SCORES = "scores.json"  # of a version's files: pipeline/stages/register.py


EARLIER = "exact_match"  # what versions were compared by before the gate had conditions


def scores_of(version: ModelVersion) -> dict[str, dict[str, float]] | None:
    """Scores by metric and slice, then by question; None if the version has none, or its files
    cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            # Of the register stage's run: MLflow does not find a file below a logged model's URI.
            file = download_artifacts(run_id=version.run_id, artifact_path=SCORES, dst_path=folder)
            return by_metric(json.loads(Path(file).read_text()))
        except (MlflowException, OSError, ValueError, TypeError, AttributeError):
            return None


def by_metric(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a file of scores says. One of an earlier version has questions alone."""
    if not any(isinstance(entry, Mapping) for entry in found.values()):
        found = {EARLIER: found}
    return {
        str(key): {str(question): float(score) for question, score in entry.items()}
        for key, entry in found.items()
    }
