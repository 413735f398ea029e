"""vLLM: its arguments for serving an HF checkpoint. Does not import vLLM."""

from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError, DataError, MissingRuntime
from pipeline.engines.checkpoint import quantization_of
from pipeline.optimization.formats import FORMATS, format_of

FEATURES = frozenset(
    {
        *("logprobs", "prompt_logprobs", "guide", "logit_bias", "penalties", "adapters"),
        *("min_tokens", "allowed_token_ids", "cache_salt"),
    }
)
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of max_lora_rank


def version() -> str | None:
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


def missing() -> str | None:
    """Why this machine cannot run vLLM; None if it can."""
    return None if version() else "vLLM is not installed"


def not_loaded(precision: str) -> str | None:
    """Why vLLM cannot load a format; None if it can."""
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
    """vLLM's engine arguments for an HF checkpoint, without the model's path.

    Raises:
        ConfigError: engine.lora_rank is above vLLM's highest.
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
    """The smallest of vLLM's ranks that is large enough.

    Raises:
        ConfigError: the rank is above the highest.
    """
    check_rank(rank)
    return next(allowed for allowed in LORA_RANKS if allowed >= rank)


def check_rank(rank: int) -> None:
    """
    Raises:
        ConfigError: the rank of adapters is above vLLM's highest.
    """
    if rank > LORA_RANKS[-1]:
        raise ConfigError(
            f"engine.lora_rank={rank} is above vLLM's limit of {LORA_RANKS[-1]}: merge the adapter "
            "instead"
        )
