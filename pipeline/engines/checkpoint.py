"""Checkpoints that an engine can load: their form and precision."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.errors import DataError
from pipeline.models.files import MODELOPT_STATE
from pipeline.optimization.formats import FORMATS, exported_forms, format_of, quantized_formats

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a checkpoint.

    form: hf; modelopt, which is HF with ModelOpt's fake quantization; unified, ModelOpt's quantized
        HF; qnemo, a TensorRT-LLM checkpoint for `tensor_parallel` GPUs.
    precision: of the weights. fp8_cache: keys and values are cached in 8 bits.
    stored: bytes of the weights; 0 if they do not exist yet.
    """

    form: Literal["hf", "modelopt", "unified", "qnemo"]
    precision: str
    fp8_cache: bool = False
    tensor_parallel: int = 1
    stored: int = 0


def hf_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in an HF folder.

    Raises:
        DataError: it has no config.json, or its quantization is not supported.
    """
    algorithm, cache = quantization_of(folder)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if algorithm is not None:
        precision = _precision(folder, algorithm)
        return Checkpoint("unified", precision, fp8_cache=cache == "FP8", stored=stored)
    try:
        config = json.loads((folder / "config.json").read_text())
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / 'config.json'} cannot be read ({error}): give the folder of an HF model"
        ) from error
    form: Literal["hf", "modelopt"] = "modelopt" if (folder / MODELOPT_STATE).is_file() else "hf"
    return Checkpoint(form, DTYPES.get(dtype, "fp32"), stored=stored)


def exported_checkpoints(exported: Path) -> list[Checkpoint]:
    """The checkpoints that stage=export wrote: qnemo, if the format has it, and unified HF if it is
    quantized.

    Raises:
        DataError: one of them cannot be read.
    """
    file = exported / "qnemo" / "config.json"
    if not file.parent.is_dir() and (exported / "hf").is_dir():
        return [hf_checkpoint(exported / "hf")]
    try:
        config = json.loads(file.read_text())
        quantization = config.get("quantization") or {}
        algorithm = quantization.get("quant_algo")
        cache = quantization.get("kv_cache_quant_algo") == "FP8"
        ranks, dtype = int(config["mapping"]["tp_size"]), config["dtype"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error!r}): run stage=export again") from error
    precision = _precision(file, algorithm) if algorithm else DTYPES.get(dtype, "bf16")
    qnemo = Checkpoint("qnemo", precision, cache, ranks)
    return [qnemo] + [Checkpoint("unified", precision, cache)] * (algorithm is not None)


def planned_checkpoints(
    format: str, kv_cache: str, ranks: int, dtype: str, no_qnemo: str | None
) -> list[Checkpoint]:
    """The checkpoints that stage=export would write with these settings.

    no_qnemo: why the model has no TensorRT-LLM checkpoint, if so.
    """
    record = FORMATS[format]
    cache, precision = kv_cache == "fp8", format if record.quantized else DTYPES[dtype]
    planned = {
        "qnemo": Checkpoint("qnemo", precision, cache, ranks),
        "hf": Checkpoint("unified", precision, cache),
    }
    # Without quantization the other form is the merged model.
    forms = exported_forms(format, no_qnemo)
    return [planned[form] for form in forms if record.quantized or form == "qnemo"]


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


def _precision(place: Path, algorithm: str) -> str:
    format = format_of(algorithm)
    if format is None:
        known = ", ".join(str(format.algorithm) for format in quantized_formats())
        raise DataError(
            f"{place} is quantized with {algorithm}, which is not supported: choose from {known}"
        )
    return format.name
