"""TensorRT-LLM: the `trtllm-build` command for a qnemo checkpoint, and running it where it is.

TensorRT-LLM is not in the package index; it runs in NVIDIA's containers. Versions 1.0 to 1.2 build
engines; later ones have no engine backend. The flags are those of `trtllm-build --help` in 1.2.
This module does not import TensorRT-LLM.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ArtifactError, DataError, MissingRuntime
from pipeline.core.processes import ends_with_this
from pipeline.optimization.formats import FORMATS, format_of

IMAGE = "<NVIDIA registry>/nvidia/tensorrt-llm/release:1.2.1"
COMMAND = "trtllm-build"
ENGINE_FOLDER = "engine"  # below the artifact: rank*.engine and their config.json
LOG = "trtllm-build.log"
# What it can do beyond sampling (engines/base.py), by backend, but for adapters.
FEATURES = {
    "pytorch": frozenset({"logprobs", "guide"}),
    # Engines are built without the logits that log-probabilities come from.
    "tensorrt": frozenset({"penalties"}),
}
MAX_NUM_TOKENS = 8192  # trtllm-build's default


def version() -> str | None:
    """Version of the installed TensorRT-LLM, if its engine builder is installed too."""
    try:
        return metadata.version("tensorrt_llm") if shutil.which(COMMAND) else None
    except metadata.PackageNotFoundError:
        return None


def missing() -> str | None:
    """Why this machine cannot build TensorRT engines; None if it can."""
    found = version()
    if found is None:
        return "TensorRT-LLM is not installed"
    if not re.match(r"1\.[012](\.|$)", found):
        return f"TensorRT-LLM {found} is installed, and only 1.0 to 1.2 build engines"
    return None


def llm_version() -> str | None:
    """Version of the installed TensorRT-LLM, whose LLM API is enough to serve an HF folder."""
    try:
        return metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        return None


def missing_llm() -> str | None:
    """Why its PyTorch backend cannot serve HF folders here; None if it can."""
    found = llm_version()
    if found is None:
        return "TensorRT-LLM is not installed"
    if not re.match(r"[1-9]", found):
        return f"TensorRT-LLM {found} is installed, and HF folders need 1.0 or later"
    return None


def not_loaded(precision: str) -> str | None:
    """Why its PyTorch backend cannot load a format; None if it can."""
    format = FORMATS.get(precision)
    loaded = format.trtllm_loads_hf if format else precision in ("bf16", "fp16")
    return None if loaded else f"TensorRT-LLM's PyTorch backend does not load {precision}"


def build_command(checkpoint: Path, out: Path, engine: EngineConfig) -> list[str]:
    """The arguments of `trtllm-build` for a qnemo checkpoint.

    Tensor and pipeline parallelism come from the checkpoint; one worker builds each rank.

    Raises:
        DataError: the checkpoint's config.json cannot be read.
    """
    config = _read_config(checkpoint)
    quantization = config.get("quantization") or {}
    format = format_of(quantization.get("quant_algo"))
    gemm = "auto" if format is None or format.gemm_plugin else "disable"
    arguments = {
        "checkpoint_dir": checkpoint,
        "output_dir": out,
        "max_batch_size": engine.max_batch_size,
        "max_input_len": engine.max_input_len,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": max(MAX_NUM_TOKENS, engine.max_input_len),
        "kv_cache_type": "paged",
        "gemm_plugin": gemm,
        "workers": config["mapping"]["world_size"],
    }
    return [COMMAND, *(text for k, v in arguments.items() for text in (f"--{k}", str(v)))]


def llm_arguments(engine: EngineConfig, tensor_parallel: int, *, built: bool) -> dict[str, Any]:
    """Arguments of the LLM class; a built engine already contains most of them."""
    arguments: dict[str, Any] = {"max_batch_size": engine.max_batch_size}
    if not built:
        arguments |= {
            "max_input_len": engine.max_input_len,
            "max_seq_len": engine.max_seq_len,
            "tensor_parallel_size": tensor_parallel,
        }
    return {**arguments, **engine.arguments}


def container_command(checkpoint: Path, out: Path, engine: EngineConfig) -> str:
    """The same in NVIDIA's container, as a shell command for a machine with a GPU and Docker."""
    inside = build_command(checkpoint, out, engine)
    inside[inside.index(str(checkpoint))] = "/checkpoint"
    inside[inside.index(str(out))] = "/engine"
    volumes = ["-v", f"{checkpoint.resolve()}:/checkpoint:ro", "-v", f"{out.resolve()}:/engine"]
    docker = ["docker", "run", "--rm", "--gpus", "all", "--ipc", "host", *volumes, IMAGE]
    return shlex.join([*docker, *inside])


def refusal(reason: str, checkpoint: Path, engine: EngineConfig) -> MissingRuntime:
    """The error where TensorRT-LLM is not installed, with what to do."""
    command = container_command(checkpoint, Path("trtllm-engine"), engine)
    return MissingRuntime(
        f"engine=trtllm: {reason}. Run this stage inside {IMAGE}, or build the engine from the "
        f"exported checkpoint there with\n{command}\nor build for this machine with "
        "engine=onnxruntime"
    )


def build(
    checkpoint: Path, out: Path, engine: EngineConfig, show: Callable[[str], None]
) -> dict[str, Any]:
    """Build the engine into out/engine, with its log in `out`; `show` gets each line of the log.

    Returns:
        The TensorRT-LLM version, the checkpoint's precision and the command, for the manifest.

    Raises:
        MissingRuntime: TensorRT-LLM is not installed. ArtifactError: trtllm-build failed.
    """
    if reason := missing():
        raise refusal(reason, checkpoint, engine)
    command = build_command(checkpoint, out / ENGINE_FOLDER, engine)
    with (
        (out / LOG).open("w") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=ends_with_this(),
        ) as process,
    ):
        last: list[str] = []
        for line in process.stdout or ():
            log.write(line)
            show(line.rstrip())
            last = [*last[-4:], line.strip()]
    if process.returncode != 0:
        raise ArtifactError(
            f"{COMMAND} failed with exit code {process.returncode} on {checkpoint}: "
            f"{' | '.join(last)}; the full log is in {out / LOG}"
        )
    config = _read_config(checkpoint)
    _require_ranks(out / ENGINE_FOLDER, config["mapping"]["world_size"])
    precision = (config.get("quantization") or {}).get("quant_algo") or config["dtype"]
    return {"version": version(), "precision": precision, "command": shlex.join(command)}


def _require_ranks(folder: Path, ranks: int) -> None:
    wanted = [f"rank{rank}.engine" for rank in range(ranks)]
    lacking: Sequence[str] = [name for name in wanted if not (folder / name).is_file()]
    if lacking:
        raise ArtifactError(
            f"{COMMAND} succeeded but did not write {', '.join(lacking)} to {folder}"
        )


def _read_config(checkpoint: Path) -> dict[str, Any]:
    try:
        config = json.loads((checkpoint / "config.json").read_text())
        config["mapping"]["world_size"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{checkpoint / 'config.json'} does not describe a TensorRT-LLM checkpoint "
            f"({error!r}): run `python -m pipeline stage=export`"
        ) from error
    return config
