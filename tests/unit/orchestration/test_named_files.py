"""Files that evaluate's settings name: part of the fingerprint, and known to DVC."""

import json
import re
from pathlib import Path

import pytest

from pipeline.config.defaults import default_config, default_tree
from pipeline.core.errors import PipelineError
from pipeline.orchestration import stage_versions
from pipeline.orchestration.compose import write_params
from pipeline.orchestration.graph import read_graph
from pipeline.orchestration.runner import with_named_files


@pytest.mark.parametrize("stage", ["evaluate", "benchmark"])
def test_named_files_are_read_by_the_stages_that_measure(stage: str, tmp_path: Path) -> None:
    changes = {
        "evaluate.metrics": ["exact_match", "json_schema", f"{tmp_path}/own.py:polite"],
        "evaluate.json_schema": tmp_path / "schema.json",
        "evaluate.judge.rubric": tmp_path / "rubric.txt",
    }
    tree, config = default_tree(changes), default_config(changes)
    graph = read_graph(tree)
    found = with_named_files(graph[stage], config).files
    assert {"own.py", "schema.json", "rubric.txt"} <= {path.name for path in found}
    assert with_named_files(graph["merge"], config) == graph["merge"]


def test_dvc_learns_that_a_named_file_changed(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def f(answer): return 1\n")
    write_params(tmp_path, default_tree({"evaluate.metrics": ["exact_match", f"{own}:f"]}))
    artifacts = tmp_path / "artifacts"

    def files(stage: str) -> object:
        stage_versions.write(artifacts, tmp_path)
        return json.loads((artifacts / "versions" / f"{stage}.json").read_text()).get("files")

    before = files("evaluate")
    assert before == files("benchmark") == files("evaluate")
    assert files("merge") is None
    own.write_text("def f(answer): return 12\n")
    assert files("evaluate") != before
    (tmp_path / "params.yaml").write_text("evaluate: 7\n")
    assert files("evaluate") is None, "which the stage itself refuses"


def model_file(artifacts: Path) -> object:
    return json.loads((artifacts / "versions" / "model.json").read_text())


def test_dvc_learns_that_the_base_model_changed(tmp_path: Path) -> None:
    model, artifacts = tmp_path / "model", tmp_path / "artifacts"
    model.mkdir()
    (model / "config.json").write_text("{}")
    tree = default_tree({"model.path": model})
    write_params(tmp_path, tree)
    stage_versions.write(artifacts, tmp_path)
    before = model_file(artifacts)
    (model / "config.json").write_text("{ }")
    stage_versions.write(artifacts, tmp_path)
    assert model_file(artifacts) != before
    readers = [n.name for n in read_graph(tree).values() if model in n.files]
    assert readers == ["prepare", "import", "evaluate"]


@pytest.mark.parametrize(
    ("path", "said"),
    [("org/name", "type model.path=hf://org/name"), ("hf://a b", "not of the form hf://"),
     ("/nowhere/at/all", "does not exist: correct the setting")],
)  # fmt: skip
def test_a_model_that_cannot_be_had_is_refused_before_any_stage(
    tmp_path: Path, path: str, said: str
) -> None:
    write_params(tmp_path, {"model": {"path": path}})
    with pytest.raises(PipelineError, match=re.escape(said)):
        stage_versions.write(tmp_path / "artifacts", tmp_path)
