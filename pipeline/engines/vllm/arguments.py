"""vLLM: the arguments with which it serves a unified HF checkpoint. Imports nothing of it."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError, DataError, MissingRuntime
from pipeline.optimization.formats import FORMATS, format_of

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what max_lora_rank may be


def version() -> str | None:
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


def missing() -> str | None:
    """Why this machine cannot run vLLM; None if it can."""
    return None if version() else "vLLM is not installed"


def not_loaded(precision: str) -> str | None:
    """Why vLLM cannot load a format, by its name here; None if it can."""
    format = FORMATS.get(precision)
    if format is None or format.vllm:
        return None
    return (
        f"vLLM does not load {precision}: choose quantize=fp8 or quantize=none, or build this "
        "format with engine=trtllm"
    )


def refusal(reason: str) -> MissingRuntime:
    return MissingRuntime(
        f"engine=vllm: {reason}. Install it into an environment of its own on a machine with a GPU "
        "(`pip install vllm`), or run this stage in the container vllm/vllm-openai, or build for "
        "this machine with engine=onnxruntime"
    )


def profile(checkpoint: Path, engine: EngineConfig, tensor_parallel: int) -> dict[str, Any]:
    """vLLM's engine arguments for an HF checkpoint that it loads, without the model's place.

    Raises:
        ConfigError: engine.lora_rank is over vLLM's highest.
        DataError: the checkpoint's hf_quant_config.json cannot be read, or names a format that
            vLLM does not load.
    """
    algorithm, kv_cache = quantization_of(checkpoint)
    arguments: dict[str, Any] = {
        "max_model_len": engine.max_seq_len,
        "max_num_seqs": engine.max_batch_size,
        "tensor_parallel_size": tensor_parallel,
        "kv_cache_dtype": "fp8" if kv_cache == "FP8" else "auto",
        "trust_remote_code": False,
    }
    if engine.lora_rank:
        arguments |= {"enable_lora": True, "max_lora_rank": _allowed_rank(engine.lora_rank)}
    if algorithm:
        format = format_of(algorithm)
        if format is None or format.vllm is None:
            raise DataError(f"{checkpoint} is of {algorithm}, which vLLM does not load")
        arguments["quantization"] = format.vllm
    return {**arguments, **engine.arguments}


def _allowed_rank(rank: int) -> int:
    """The least of vLLM's ranks that holds it.

    Raises:
        ConfigError: it is over the highest.
    """
    if rank > LORA_RANKS[-1]:
        raise ConfigError(
            f"engine.lora_rank={rank} is over vLLM's {LORA_RANKS[-1]}: merge the adapter instead"
        )
    return next(allowed for allowed in LORA_RANKS if allowed >= rank)


def quantization_of(checkpoint: Path) -> tuple[str | None, str | None]:
    """quant_algo and kv_cache_quant_algo of hf_quant_config.json; both None without the file."""
    file = checkpoint / "hf_quant_config.json"
    if not file.is_file():
        return None, None
    try:
        quantization = json.loads(file.read_text())["quantization"]
        return quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    except (ValueError, KeyError) as error:
        raise DataError(f"{file} cannot be read ({error!r}): run stage=export again") from error
