"""stage=graph: what it draws of what is there."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.config.defaults import default_config
from pipeline.core.errors import ResourceError
from pipeline.orchestration.effects import GRAPH
from pipeline.stages import graph
from tests.made_artifacts import make_artifact, make_chain


def test_every_stage_and_file_has_a_line_and_its_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_chain(tmp_path, failure="too bad")
    make_artifact(tmp_path, "merge", "hf_checkpoint", inputs={"import": made["import"]},
                  files={"data.txt": "another"})  # fmt: skip
    graph.run(default_config({"artifacts": str(tmp_path)}))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {*GRAPH, "data/bank", "data/base_model"}
    assert "dataset, 0.0 MiB, 20" in lines["prepare"]
    assert lines["register"].endswith("not made yet")
    assert lines["evaluate"].endswith("refused by the gate, made from another merge")
    assert lines["import"].index("●") > lines["prepare"].index("●")


@pytest.mark.parametrize("form", ["svg", "mermaid"])
def test_it_is_written_to_a_file(tmp_path: Path, form: str) -> None:
    file = tmp_path / "pictures" / "graph"
    settings: dict[str, Any] = {"artifacts": str(tmp_path), "graph.format": form}
    graph.run(default_config({**settings, "graph.to": str(file)}))
    text = file.read_text()
    assert all(stage in text for stage in GRAPH)
    if form == "svg":
        ElementTree.fromstring(text)
    with pytest.raises(ResourceError, match="cannot be written"):
        graph.run(default_config({**settings, "graph.to": str(file / "inside")}))
