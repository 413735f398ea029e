"""The trtllm-build command holds only flags of TensorRT-LLM 1.2, and the right ones."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.defaults import default_config
from pipeline.core.errors import ArtifactError, DataError, MissingRuntime
from pipeline.engines.trtllm import build as trtllm

# `trtllm-build --help` of 1.2: None takes anything, an int any whole number, else one of these.
FLAGS: dict[str, Any] = {
    **dict.fromkeys(("checkpoint_dir", "model_config", "build_config", "output_dir")),
    **dict.fromkeys(("input_timing_cache", "output_timing_cache", "lora_dir", "log_level")),
    **dict.fromkeys(("max_batch_size", "max_input_len", "max_seq_len", "max_beam_width"), 0),
    **dict.fromkeys(("max_num_tokens", "opt_num_tokens", "max_encoder_input_len"), 0),
    **dict.fromkeys(("max_prompt_embedding_table_size", "workers", "tokens_per_block"), 0),
    "kv_cache_type": ("continuous", "paged", "disabled"),
    "logits_dtype": ("float16", "float32"),
    "gemm_plugin": ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"),
    **dict.fromkeys(
        ("context_fmha", "remove_input_padding", "use_paged_context_fmha", "use_fp8_context_fmha"),
        ("enable", "disable"),
    ),
}
ALGORITHMS = {
    "FP8": "disable",
    "W8A8_SQ_PER_CHANNEL": "disable",
    "W4A16_AWQ": "auto",
    "W4A8_AWQ": "auto",
    None: "auto",
}
ENGINE = default_config(
    {
        "engine.name": "trtllm",
        "engine.max_batch_size": 8,
        "engine.max_input_len": 1000,
        "engine.max_seq_len": 1200,
    }
).engine


def checkpoint(folder: Path, algorithm: str | None = "FP8", ranks: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {"world_size": ranks, "tp_size": ranks, "pp_size": 1}
    config = {"dtype": "bfloat16", "mapping": mapping, "quantization": {"quant_algo": algorithm}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def parse(command: list[str]) -> dict[str, str]:
    assert command[0] == "trtllm-build"
    names, values = command[1::2], command[2::2]
    assert all(name.startswith("--") for name in names)
    return {name[2:]: value for name, value in zip(names, values, strict=True)}


@pytest.mark.parametrize(("algorithm", "gemm"), ALGORITHMS.items())
@pytest.mark.parametrize("ranks", [1, 4])
def test_the_command_is_one_that_1_2_takes(
    tmp_path: Path, algorithm: str | None, gemm: str, ranks: int
) -> None:
    given = parse(trtllm.build_command(checkpoint(tmp_path, algorithm, ranks), Path("e"), ENGINE))
    for name, value in given.items():
        allowed = FLAGS[name]
        assert allowed is None or (int(value) > 0 if allowed == 0 else value in allowed)
    assert given["gemm_plugin"] == gemm
    assert given["workers"] == str(ranks)
    sizes = {name: int(given[name]) for name in ("max_batch_size", "max_input_len", "max_seq_len")}
    assert sizes == {"max_batch_size": 8, "max_input_len": 1000, "max_seq_len": 1200}


def test_a_step_can_hold_a_whole_prompt(tmp_path: Path) -> None:
    long = ENGINE.model_copy(update={"max_input_len": 20_000, "max_seq_len": 21_000})
    given = parse(trtllm.build_command(checkpoint(tmp_path), Path("e"), long))
    assert int(given["max_num_tokens"]) == 20_000


def test_where_it_is_absent_the_refusal_holds_the_container_and_the_command(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "check point")
    with pytest.raises(MissingRuntime) as refused:
        trtllm.build(folder, tmp_path / "out", ENGINE, print)
    message = str(refused.value)
    assert refused.value.exit_code == 7
    assert "TensorRT-LLM is not installed" in message
    assert "engine=onnxruntime" in message
    line = next(line for line in message.splitlines() if line.startswith("docker run"))
    words = shlex.split(line)
    assert words[:3] == ["docker", "run", "--rm"]
    assert f"{folder}:/checkpoint:ro" in words
    image = words.index("<NVIDIA registry>/nvidia/tensorrt-llm/release:1.2.1")
    inside = parse(words[image + 1 :])
    assert (inside["checkpoint_dir"], inside["output_dir"]) == ("/checkpoint", "/engine")
    outside = parse(trtllm.build_command(folder, Path("e"), ENGINE))
    places = ("checkpoint_dir", "output_dir")
    assert {k: v for k, v in inside.items() if k not in places} == {
        k: v for k, v in outside.items() if k not in places
    }


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TensorRT-LLM 1.2.1 whose trtllm-build writes its arguments down and one rank."""
    program = tmp_path / "bin" / "trtllm-build"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\necho "building $*"\necho "[W] careful" >&2\n'
        'mkdir -p "$4" && echo engine > "$4/rank0.engine"\nexit ${FAIL:-0}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(trtllm.metadata, "version", lambda package: "1.2.1")
    return program


def test_where_it_is_the_command_runs_and_its_log_is_kept(tmp_path: Path, installed: Path) -> None:
    out, shown = tmp_path / "out", []
    out.mkdir()
    made = trtllm.build(checkpoint(tmp_path / "c"), out, ENGINE, shown.append)
    assert made["version"] == "1.2.1"
    assert made["precision"] == "FP8"
    assert (out / "engine" / "rank0.engine").is_file()
    log = (out / trtllm.LOG).read_text()
    assert "[W] careful" in log
    assert shown == log.splitlines()
    assert made["command"].removeprefix("trtllm-build ") in log


def test_its_failure_ends_with_its_last_words(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "3")
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"exit code 3 .*\[W\] careful"):
        trtllm.build(checkpoint(tmp_path / "c"), tmp_path / "out", ENGINE, print)


def test_a_rank_that_is_missing_is_an_error(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"did not write rank1\.engine"):
        trtllm.build(checkpoint(tmp_path / "c", ranks=2), tmp_path / "out", ENGINE, print)


@pytest.mark.parametrize(
    ("version", "refused"),
    [("1.0.0", False), ("1.2.1", False), ("1.3.0", True), ("0.21.0", True), ("1.20.0", True)],
)
def test_only_versions_with_an_engine_builder_count(
    installed: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    monkeypatch.setattr(trtllm.metadata, "version", lambda package: version)
    assert (trtllm.missing() is not None) == refused


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stage=export"):
        trtllm.build_command(tmp_path, tmp_path, ENGINE)
