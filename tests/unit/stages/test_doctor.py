"""doctor: the report says what can run and what mends the rest, whatever it finds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config, load
from pipeline.core import hardware
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.orchestration.compose import compose
from pipeline.orchestration.graph import OUTSIDE, read_graph
from pipeline.stages import doctor

BARE = Machine("Linux", "3.11.7", "a processor", 2.0, 23 * GIB, None, ())
H200 = Gpu("NVIDIA H200", 140 * GIB, "9.0", mig=False)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([])


@pytest.fixture
def config(tree: dict[str, Any], tmp_path: Path) -> Config:
    return load({**tree, "artifacts": tmp_path / "artifacts"})


def report(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    machine: Machine = BARE,
    installed: dict[str, str] | None = None,
) -> list[str]:
    """Lines of the report, white space put together."""
    everything = {name: "1.0" for need in doctor.needs() for name in need.packages}
    versions = everything if installed is None else installed
    monkeypatch.setattr(hardware, "inspect_machine", lambda: machine)
    monkeypatch.setattr(hardware, "installed_version", versions.get)
    monkeypatch.setenv("COLUMNS", "200")
    doctor.run(config)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_every_stage_is_judged(tree: dict[str, Any]) -> None:
    need_nothing = {"canary", "clean", "doctor", "graph", "plan", "verify", "pull", "promote",
                    "rollback", "versions"}  # fmt: skip
    assert {need.stage for need in doctor.needs()} == {*read_graph(tree), *OUTSIDE} - need_nothing


def test_machine_with_everything(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus = (H200, Gpu("NVIDIA B200", 180 * GIB, "10.0", mig=True), Gpu("T4", GIB, "7.5", mig=False))
    machine = Machine("Linux", "3.12.3", "a processor", 16.0, 128 * GIB, "580.65", gpus)
    lines = report(config, monkeypatch, capsys, machine)
    assert "GPU NVIDIA H200, 140 GiB, compute 9.0, native fp8" in lines
    assert "GPU NVIDIA B200, 180 GiB, compute 10.0, native fp8 and nvfp4, MIG" in lines
    assert "GPU T4, 1 GiB, compute 7.5" in lines
    assert "driver 580.65" in lines
    assert "build engine=trtllm yes" in lines
    assert not any(" no " in line or line.startswith("For ") for line in lines)


def test_machine_without_gpu(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = {name: "1.0" for need in doctor.needs() if not need.gpu for name in need.packages}
    lines = report(config, monkeypatch, capsys, installed=installed)
    assert "finetune yes" in lines
    assert "quantize quantize=nvfp4 no no NVIDIA GPU" in lines
    assert "build engine=trtllm no no tensorrt_llm, no NVIDIA GPU" in lines
    (mend,) = [line for line in lines if line.startswith("For engine=trtllm:")]
    assert "on a machine with an NVIDIA GPU: docker run" in mend
    assert "/nvidia/tensorrt-llm/release:1.2.1" in mend


def test_machine_with_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poor = Machine("Linux", "3.11.7", "a processor", 1.0, 2 * GIB, None, ())
    lines = report(config, monkeypatch, capsys, poor, installed={})
    assert "memory 2.0 GiB, and the demo needs 6 GiB" in lines
    assert any(line.startswith("register no no mlflow") for line in lines)
    (mend,) = [line for line in lines if line.startswith("For prepare, import, finetune")]
    assert mend.endswith(": make setup")


def test_conflicting_library(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = report(config, monkeypatch, capsys, installed={"nemo_toolkit": "3.0.0", "numpy": "2.1"})
    assert any(
        line.startswith("nemo_toolkit 3.0.0 training, import, merge 3.0.0 has") for line in lines
    )
    assert any(line.startswith("numpy 2.1 2.1 is over") for line in lines)


def test_model_folder_that_cannot_be_used(
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = {**tree["model"], "path": tmp_path}
    config = load({**tree, "artifacts": tmp_path / "artifacts", "model": model})
    lines = report(config, monkeypatch, capsys)
    assert any(line.startswith("base model") and "config.json" in line for line in lines)


def test_artifacts_and_their_state(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(stage: str, content: bytes = b"12345", **changes: Any) -> None:
        folder = config.artifacts / stage
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(content)
        manifest = {
            "kind": f"a_{stage}",
            "files": {"a": {"sha256": "", "bytes": 5}},
            "created": "2026-01-01",
            "failure": None,
            "schema": 3,
        }
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))

    write("prepare")
    write("import", b"1234")
    write("evaluate", failure="exact match [0.2] is under 0.8")
    write("merge", schema=0)
    write("build", files=[])
    (config.artifacts / "export").mkdir()
    (config.artifacts / ".work" / "finetune-0123456789abcdef").mkdir(parents=True)
    lines = report(config, monkeypatch, capsys)
    assert "prepare a_prepare complete 0.0 MiB 2026-01-01" in lines
    assert any(line.startswith("import a_import altered: a; run `python -m") for line in lines)
    assert any(line.startswith("evaluate a_evaluate refused: exact match [0.2]") for line in lines)
    assert any(line.startswith("merge a_merge from another version: run") for line in lines)
    assert any(line.startswith("build incomplete: run") for line in lines)
    assert any(line.startswith("export incomplete: run") for line in lines)
    assert any(
        line.startswith("finetune interrupted: the same command resumes it") for line in lines
    )


def test_no_artifacts(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none yet `make demo` makes them" in report(config, monkeypatch, capsys)


def test_command_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pipeline.__main__ import main; code = main(['stage=doctor']); "
        "heavy = {'torch', 'numpy', 'transformers', 'mlflow', 'pyarrow', 'tokenizers', 'nemo'}; "
        "print(heavy & set(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert answer.stderr.strip() == "set()"
    assert "This machine" in answer.stdout
