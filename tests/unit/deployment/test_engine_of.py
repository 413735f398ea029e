"""engine_of: an engine is found by its digest, wherever it is kept."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.deployment.pull import engine_of
from pipeline.orchestration import compose
from pipeline.tracking import registry_reader
from tests.made_artifacts import make_artifact


def configured(artifacts: Path) -> Config:
    return compose.from_command_line(["stage=serve", f"artifacts={artifacts}"])[2]


def make_engine(artifacts: Path, content: str) -> Artifact:
    return make_artifact(artifacts, "build", "engine", files={"model.onnx": content})


def put_aside(artifacts: Path, key: str) -> Path:
    aside = artifacts / ".variants" / f"build-{key}"
    shutil.copytree(artifacts / "build", aside)
    return aside


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the process that asks the registry is to print; `code` and `stderr` if it is to fail."""
    answer: dict[str, Any] = {"version": 3, "aliases": ["candidate", "champion"], "tags": {}}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "code" in answer:
            return subprocess.CompletedProcess(command, answer["code"], "", answer["stderr"])
        return subprocess.CompletedProcess(command, 0, f"a warning\n{json.dumps(answer)}\n", "")

    monkeypatch.setattr(registry_reader.subprocess, "run", run)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/mlflow.db").touch()
    return answer


def test_what_was_built_last_and_what_was_built_before(
    tmp_path: Path, registry: dict[str, Any]
) -> None:
    config = configured(tmp_path)
    first = make_engine(tmp_path, "first").manifest.digest
    aside = put_aside(tmp_path, "1")
    second = make_engine(tmp_path, "second").manifest.digest
    for digest, place in ((first, aside), (second, tmp_path / "build")):
        registry["tags"]["digest.build"] = digest
        found = engine_of("champion", config)
        assert (found.artifact.path, found.version.title) == (
            place,
            "version 3 (candidate, champion)",
        )


def test_an_engine_that_is_gone_or_altered_is_not_served(
    tmp_path: Path, registry: dict[str, Any]
) -> None:
    config = configured(tmp_path)
    made = make_engine(tmp_path, "first")
    registry["tags"]["digest.build"] = made.manifest.digest
    (tmp_path / "build/model.onnx").write_text("other")
    with pytest.raises(ArtifactError, match="was altered"):
        engine_of(3, config)
    shutil.rmtree(tmp_path / "build")
    with pytest.raises(ArtifactError, match=r"version 3 of .* which is not in"):
        engine_of(3, config)


def test_a_registry_that_does_not_have_it_or_does_not_answer(
    tmp_path: Path, registry: dict[str, Any]
) -> None:
    config = configured(tmp_path)
    registry |= {"code": 1, "stderr": "noise\nConnectionError: http://me:secret@host refused\n"}
    with pytest.raises(PipelineError, match=r"\(ConnectionError: http://me:\*\*\*@host refused\)"):
        engine_of("champion", config)
    (tmp_path / "mlflow/mlflow.db").unlink()
    with pytest.raises(ArtifactError, match=r"has no version of .* yet"):
        engine_of("champion", config)
