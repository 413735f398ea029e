"""An engine and a metric that are added to their tables, and to nothing else, work everywhere.

Each in a process of its own, with a record from added_engine.py or added_metric.py.
"""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.core.paths import ROOT
from pipeline.models.chat.renderer import Chat
from pipeline.stages import build
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import add_weights, make_model_folder


def output_of(module: str, folder: Path) -> dict[str, str]:
    """What each command of the module printed, white space put together."""
    command = [sys.executable, "-m", f"tests.integration.{module}", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    parts = [part.partition("\n") for part in done.stdout.split("== ")[1:]]
    return {name: " ".join(text.split()) for name, _, text in parts}


def test_an_added_engine_is_planned_built_and_served(tmp_path: Path) -> None:
    model = add_weights(make_model_folder(tmp_path / "merge", "demo"))
    (model / "generation_config.json").write_text("{}")
    make_artifact(tmp_path, "merge", "hf_checkpoint")
    make_artifact(tmp_path, "prepare", "dataset")
    qnemo = {"dtype": "bfloat16", "mapping": {"tp_size": 1}}
    make_artifact(tmp_path, "export", "exported", files={"qnemo/config.json": json.dumps(qnemo)})
    said = output_of("added_engine", tmp_path)
    assert "build engine=echo yes" in said["stage=doctor"]
    assert "echo-fp32-tp1-pp1" in said["stage=profiles"]
    assert "using echo-fp32-tp1-pp1" in said["stage=profiles"]
    assert "build" in said["stage=plan"]
    described = json.loads((tmp_path / "build" / "engine.json").read_text())
    assert (described["runtime"], described["version"]) == ("echo", "1.0")
    manifest = json.loads((tmp_path / "build" / "manifest.json").read_text())
    # The fingerprint depends on this engine's component, and on no other engine's.
    assert manifest["versions"] == {"stage": build.STAGE.version, "engine/echo": 3}
    assert "onnxruntime" not in manifest["libraries"]
    chat = Chat.load(model)
    prompt = chat.prompt([{"role": "user", "content": "a fee"}])
    assert said["answer"].split() == chat.decode(prompt).split()


def test_an_added_metric_is_scored_reported_and_tracked(tmp_path: Path) -> None:
    said = output_of("added_metric", tmp_path)
    assert {"same_start/base", "same_start/tuned", "same_start/none"} <= {*said["metrics"].split()}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    scores = report["models"]["tuned"]["same_start"]
    assert 0 <= scores["low"] <= scores["value"] <= scores["high"] <= 1
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| right start |" in text.splitlines()[2]
    assert "- Right start: share of the answers that begin with the right word." in text
