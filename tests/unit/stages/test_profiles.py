"""stage=profiles: the groups as NIM has them, for people and for programs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config, load
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.core.paths import ROOT
from pipeline.orchestration.compose import compose
from pipeline.stages import profiles

H200 = Gpu("NVIDIA H200", 140 * GIB, "9.0", mig=False)
BARE = Machine("Linux", "3.11.7", "a processor", 2.0, 23 * GIB, None, ())


def configured(artifacts: Path, **changes: Any) -> Config:
    tree = compose([f"{name}={value}" for name, value in changes.items()])
    return load({**tree, "artifacts": artifacts})


def report(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    machine: Machine = BARE,
) -> str:
    monkeypatch.setattr(profiles, "inspect_machine", lambda: machine)
    monkeypatch.setenv("COLUMNS", "200")
    profiles.run(config)
    return capsys.readouterr().out


def test_groups_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = report(configured(tmp_path), monkeypatch, capsys)
    runs, lora = text.index("runnable"), text.index("With LoRA support")
    low, lacking = text.index("too little memory"), text.index("Incompatible")
    assert runs < text.index("onnxruntime-int8-tp1-pp1 ") < lora
    assert lora < text.index("hf-fp32-tp1-pp1-feat_lora") < low
    assert lacking < text.index("trtllm-fp8-tp1-pp1 ")
    assert "no NVIDIA GPU; 2 cores, 23.0 GiB" in text
    assert "this machine has no NVIDIA GPU" in text[lacking:]
    last = text.strip().splitlines()[-1]
    assert last.startswith("engine=auto: using onnxruntime-int8-tp1-pp1: the first in NVIDIA NIM")


def test_groups_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, **{"profiles.format": "json", "quantize": "int4_awq"})
    found = json.loads(report(config, monkeypatch, capsys))
    assert found["chosen"] == "onnxruntime-int8-tp1-pp1"
    assert found["why"][-1].startswith("using onnxruntime-int8-tp1-pp1: the first in NVIDIA NIM")
    assert found["model"].endswith("data/base_model")
    (best, *_) = found["runnable"]
    assert best["name"] == found["chosen"]
    assert best["needed_bytes"] < best["capacity_bytes"] == BARE.memory_bytes
    assert best["longest_sequence"] == 512
    assert [entry["lora_rank"] for entry in found["lora"]] == [config.finetune.adapter.rank]
    names = {entry["name"]: entry["reason"] for entry in found["incompatible"]}
    assert names["trtllm-int4_awq-tp1-pp1"] == "this machine has no NVIDIA GPU"
    assert found["low_memory"] == []
    poor = Machine("Linux", "3.11.7", "a processor", 2.0, GIB // 8, None, ())
    found = json.loads(report(config, monkeypatch, capsys, poor))
    assert found["chosen"] is None
    assert {"onnxruntime-int8-tp1-pp1"} <= {entry["name"] for entry in found["low_memory"]}
    assert "too little" in found["why"][0]


def test_a_gpu_is_said_with_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine("Linux", "3.12.3", "a processor", 16.0, 128 * GIB, "580.65", (H200,))
    text = report(configured(tmp_path), monkeypatch, capsys, machine)
    assert "NVIDIA H200 (140.0 GiB); 16 cores" in text
    assert "vLLM is not installed" in text


def test_the_command_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.__main__ import main; "
        f"code = main(['stage=profiles', 'artifacts={tmp_path}']); "
        "heavy = {'torch', 'numpy', 'transformers', 'mlflow', 'onnxruntime', 'nemo', 'httpx'}; "
        "print(heavy & set(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert answer.stderr.strip() == "set()"
    assert "Compatible with system" in answer.stdout
