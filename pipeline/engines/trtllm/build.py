"""TensorRT-LLM: the `trtllm-build` command for a qnemo checkpoint, and running it where it is.

TensorRT-LLM is not in the package index; it runs in NVIDIA's containers. Its engine backend ended
after 1.2, so 1.0 to 1.2 build engines. The flags are those of `trtllm-build --help` in 1.2. Imports
nothing of it.
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
from pipeline.optimization.formats import FORMATS, format_of

IMAGE = "<NVIDIA registry>/nvidia/tensorrt-llm/release:1.2.1"
COMMAND = "trtllm-build"
ENGINES = "engine"  # below the artifact: rank*.engine and their config.json
LOG = "trtllm-build.log"
MAX_NUM_TOKENS = 8192  # trtllm-build's default


def version() -> str | None:
    """The installed TensorRT-LLM, if its engine builder is here too."""
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
        return f"TensorRT-LLM {found} is installed, and engines are built by 1.0 to 1.2"
    return None


def llm_version() -> str | None:
    """The installed TensorRT-LLM, whose LLM API is all that serving an HF folder needs."""
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
        return f"TensorRT-LLM {found} is installed, and HF folders are served from 1.0 on"
    return None


def not_loaded(precision: str) -> str | None:
    """Why its PyTorch backend does not load a format; None if it does."""
    format = FORMATS.get(precision)
    loaded = format.trtllm_loads_hf if format else precision in ("bf16", "fp16")
    return None if loaded else f"TensorRT-LLM's PyTorch backend: no {precision}"


def build_command(checkpoint: Path, out: Path, engine: EngineConfig) -> list[str]:
    """The arguments of `trtllm-build` for a qnemo checkpoint.

    Tensor and pipeline parallelism are the checkpoint's; one worker builds each rank.

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
    """Arguments of the LLM class; an engine that is built has most of them already."""
    arguments: dict[str, Any] = {"max_batch_size": engine.max_batch_size}
    if not built:
        arguments |= {
            "max_input_len": engine.max_input_len,
            "max_seq_len": engine.max_seq_len,
            "tensor_parallel_size": tensor_parallel,
        }
    return {**arguments, **engine.arguments}


def container_command(checkpoint: Path, out: Path, engine: EngineConfig) -> str:
    """The same in NVIDIA's container, as a line for a shell on a machine with a GPU and Docker."""
    inside = build_command(checkpoint, out, engine)
    inside[inside.index(str(checkpoint))] = "/checkpoint"
    inside[inside.index(str(out))] = "/engine"
    volumes = ["-v", f"{checkpoint.resolve()}:/checkpoint:ro", "-v", f"{out.resolve()}:/engine"]
    docker = ["docker", "run", "--rm", "--gpus", "all", "--ipc", "host", *volumes, IMAGE]
    return shlex.join([*docker, *inside])


def refusal(reason: str, checkpoint: Path, engine: EngineConfig) -> MissingRuntime:
    """What to do where TensorRT-LLM is not."""
    command = container_command(checkpoint, Path("trtllm-engine"), engine)
    return MissingRuntime(
        f"engine=trtllm: {reason}. Run this stage inside {IMAGE}, or build the engine from the "
        f"exported checkpoint there with\n{command}\nor build for this machine with "
        "engine=onnxruntime"
    )


def build(
    checkpoint: Path, out: Path, engine: EngineConfig, show: Callable[[str], None]
) -> dict[str, Any]:
    """Build the engine into out/engine, with its log in out; `show` gets each line of it.

    Returns:
        The TensorRT-LLM version, the checkpoint's precision and the command, for the manifest.

    Raises:
        MissingRuntime: TensorRT-LLM is not here. ArtifactError: trtllm-build failed.
    """
    if reason := missing():
        raise refusal(reason, checkpoint, engine)
    command = build_command(checkpoint, out / ENGINES, engine)
    with (
        (out / LOG).open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
            f"{' | '.join(last)}; the whole log is in {out / LOG}"
        )
    config = _read_config(checkpoint)
    _require_ranks(out / ENGINES, config["mapping"]["world_size"])
    precision = (config.get("quantization") or {}).get("quant_algo") or config["dtype"]
    return {"version": version(), "precision": precision, "command": shlex.join(command)}


def _require_ranks(folder: Path, ranks: int) -> None:
    wanted = [f"rank{rank}.engine" for rank in range(ranks)]
    lacking: Sequence[str] = [name for name in wanted if not (folder / name).is_file()]
    if lacking:
        raise ArtifactError(f"{COMMAND} ended well but left no {', '.join(lacking)} in {folder}")


def _read_config(checkpoint: Path) -> dict[str, Any]:
    try:
        config = json.loads((checkpoint / "config.json").read_text())
        config["mapping"]["world_size"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{checkpoint / 'config.json'} is not of a TensorRT-LLM checkpoint ({error!r}): run "
            "`python -m pipeline stage=export`"
        ) from error
    return config
