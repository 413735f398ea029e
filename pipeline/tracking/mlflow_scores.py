"""The scores by question that a version of the registry was registered with."""

import json
import tempfile
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

SCORES = "scores.json"  # of a version's files: pipeline/stages/register.py


def scores_of(version: ModelVersion) -> dict[str, float] | None:
    """Scores by question; None if the version has none, or its files cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            # Of the register stage's run: MLflow does not find a file below a logged model's URI.
            file = download_artifacts(run_id=version.run_id, artifact_path=SCORES, dst_path=folder)
            found = json.loads(Path(file).read_text())
        except (MlflowException, OSError, ValueError):
            return None
    return {str(question): float(score) for question, score in found.items()}
