"""Canary secrets in every place from which text comes: no file and no output holds one."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.config.schema import Config, load
from pipeline.core import secrets
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console
from pipeline.core.secrets import expand
from pipeline.core.stage import Stage
from pipeline.deployment.launchers import submission
from pipeline.orchestration import compose, runner
from pipeline.orchestration.graph import Node
from pipeline.tracking.outbox import Destination

OF = {
    name: f"canary-{name.lower().replace('_', '-')}"
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "HARBOR_API_KEY", "AWS_SECRET_ACCESS_KEY")
}
IN_ADDRESS = "canary-in-address"
REFERENCES = [
    "engine.arguments.hf_token=${oc.env:HF_TOKEN}",
    "engine.arguments.headers={Authorization: 'Bearer ${oc.env:HARBOR_API_KEY}'}",
    "tracking.uri=http://harbor:${oc.env:MLFLOW_TRACKING_PASSWORD}@127.0.0.1:9",
]


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in OF.items():
        monkeypatch.setenv(name, value)
    return [*OF.values(), IN_ADDRESS]


def leaks(folder: Path, canaries: list[str], *texts: str) -> list[str]:
    """Files and outputs that hold a canary."""
    found = [f"output: {c}" for c in canaries for text in texts if c in text]
    for file in (p for p in folder.rglob("*") if p.is_file()):
        found += [f"{file}: {c}" for c in canaries if c.encode() in file.read_bytes()]
    return found


def build(config: Config, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """A stage that says what it must not."""
    opened = expand(config.engine.arguments)
    assert opened["headers"]["Authorization"] == f"Bearer {OF['HARBOR_API_KEY']}"
    get_console().print(f"opening with {opened}, {opened['hf_token']}" + " and so on" * 9)
    get_console().print(f"at https://harbor:{IN_ADDRESS}@host/v1")
    (out / "engine.json").write_text(str(dict(config.engine.arguments)))
    if config.seed == 2:
        raise RuntimeError(f"{opened} failed at https://harbor:{IN_ADDRESS}@host/v1")
    return Outcome("engine", {"engine_mib": 1.0}, {"settings": dict(config.engine.arguments)})


@pytest.mark.parametrize("seed", [1, 2])
def test_a_stage_leaves_no_secret_in_files_and_output(
    tmp_path: Path, canaries: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, seed: int,
) -> None:  # fmt: skip
    nodes = {"build": Node("build", (), (), ("engine", "seed"))}
    monkeypatch.setattr(runner, "read_graph", lambda tree: nodes)
    module = SimpleNamespace(STAGE=Stage(version=1), run=build)
    monkeypatch.setattr(runner, "stage_module", lambda name: module)
    monkeypatch.setattr(Destination, "ensure_sender", lambda self: None)
    words = ["stage=build", *REFERENCES, f"artifacts={tmp_path / 'made'}", f"seed={seed}"]
    monkeypatch.setattr(sys, "argv", ["pipeline", *words])
    assert main([*words, "--traceback"]) == seed - 1
    compose.write_params(tmp_path, compose.from_command_line(words)[1])
    said = capsys.readouterr()
    assert leaks(tmp_path, canaries, said.out, said.err) == []
    assert "opening with" in said.err
    assert list(tmp_path.glob("made/.tracking/*/spool/*.jsonl"))
    assert "${oc.env:HF_TOKEN}" in (tmp_path / "params.yaml").read_text()


def test_a_job_of_a_cluster_holds_the_reference(
    tmp_path: Path, canaries: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "launcher=kubernetes", "launcher.container_image=x", "launcher.claim=c",
        "launcher.dry_run=true", "artifacts=/shared/made", *REFERENCES,
    ]  # fmt: skip
    tree: dict[str, Any] = compose.compose(words)
    submission.submit("build", ["stage=build", *words], load(tree))
    shown = capsys.readouterr().out
    assert leaks(tmp_path, canaries, shown) == []
    assert "${oc.env:HF_TOKEN}" in shown
