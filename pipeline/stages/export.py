"""Quantized → qnemo (TensorRT-LLM checkpoint) and unified HF, read back and compared.

    qnemo/   a TensorRT-LLM checkpoint for tensor x pipeline parallel ranks, and a tokenizer
    hf/      ModelOpt's unified HF checkpoint (vLLM, SGLang, TensorRT-LLM's PyTorch backend)

Both come from the one calibration of quantize.format. What was written is read back: its layout
against the formats' rules, its weights, unpacked, against the source's.
"""

import fnmatch
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.quantize import QuantizationFormat
from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.errors import ArtifactError, ConfigError, ProofFailed
from pipeline.core.stage import Stage
from pipeline.models.architecture import Shape, read_shape
from pipeline.optimization.formats import group_of
from pipeline.optimization.qnemo_layout import check_config, check_qnemo
from pipeline.optimization.unified_hf_layout import check_same, check_unified_hf

STAGE = Stage(
    version=1,
    libraries=("torch", "transformers", "nvidia-modelopt", "peft"),
    less_memory="put CUDA_VISIBLE_DEVICES= before the command, on a host with enough memory",
)


@dataclass(frozen=True)
class Bounds:
    """What a written weight may differ from the source's: cosine, error relative to its norm, and
    how far from 1 the factor between them may be, which rounding leaves where it is.

    On random Llamas the error is 0.027 for FP8 (three bits of mantissa), 0.017 for SmoothQuant and
    0.13 for AWQ, and twice that where inputs have outliers; it is 0.06 to 0.10 for NVFP4, whatever
    the weights' distribution. The factor is within 0.001 of 1, for NVFP4 within 0.007. A wrong
    scale, order, transposition or packing is outside.
    """

    cosine: float
    error: float
    scale: float = 0.03


# What is not quantized is copied, at most rounded to bfloat16 (eight bits of mantissa).
COPIED = Bounds(cosine=0.99999, error=2**-8, scale=2**-8)
LINEAR: Mapping[QuantizationFormat, Bounds] = {
    "none": COPIED,
    "fp8": Bounds(cosine=0.998, error=0.06),
    "int8_sq": Bounds(cosine=0.995, error=0.1),
    "int4_awq": Bounds(cosine=0.955, error=0.3),
    "w4a8_awq": Bounds(cosine=0.955, error=0.3),
    "nvfp4": Bounds(cosine=0.99, error=0.15),
}


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write and prove both forms of quantize.format.

    Raises:
        ConfigError: the model cannot be split over so many ranks, or the format not be exported.
        ArtifactError: the quantized artifact has no such format.
        ProofFailed: what was written breaks a rule or is not the source's weights.
    """
    format, ranks = config.quantize.format, config.export
    source = inputs["merge"].require("hf_checkpoint").path
    quantized = inputs["quantize"].require("quantized").path / format
    if not (quantized / "config.json").is_file():
        raise ArtifactError(
            f"{quantized} does not exist: run `python -m pipeline stage=quantize quantize={format}`"
        )
    shape = read_shape(source)
    _check_exclude(config.quantize.exclude, ranks.pipeline_parallel)
    check_splits(shape, format, ranks.tensor_parallel, ranks.pipeline_parallel)

    from pipeline.optimization import export as modelopt_export
    from pipeline.optimization.scale_checks import check_scales

    qnemo, unified = out / "qnemo", out / "hf"
    for folder in (qnemo, unified):
        shutil.rmtree(folder, ignore_errors=True)
    with progress() as bar:
        task = bar.add_task("write qnemo", total=3)
        modelopt_export.write_qnemo(
            quantized,
            source,
            qnemo,
            tensor_parallel=ranks.tensor_parallel,
            pipeline_parallel=ranks.pipeline_parallel,
        )
        bar.update(task, description="write unified HF", advance=1)
        modelopt_export.write_unified_hf(quantized, source, unified)
        bar.update(task, description="compare with the source", advance=1)
        _require_rules("qnemo", [*check_qnemo(qnemo, format), *check_config(qnemo, shape)])
        _require_rules(
            "unified HF", [*check_unified_hf(unified, format), *check_same(unified, source)]
        )
        _require_scales(check_scales(quantized, {"qnemo": qnemo, "hf": unified}, shape, format))
        tables = _compare(source, shape, qnemo, unified)
        bar.update(task, description="export", advance=1)
    exclude = config.quantize.exclude
    proof = {form: _prove(form, table, format, exclude) for form, table in tables.items()}
    sizes = {form: _weight_bytes(folder) for form, folder in (("qnemo", qnemo), ("hf", unified))}
    smallest = {form: facts["smallest_cosine"] for form, facts in proof.items()}
    get_console().print(
        f"exported {format}: "
        + ", ".join(f"{k} {v / 2**20:.2f} MiB" for k, v in sizes.items())
        + f"; smallest cosine with the source {min(smallest.values()):.5f}"
    )
    metrics = {f"bytes/{form}": float(size) for form, size in sizes.items()}
    metrics |= {f"smallest_cosine/{form}": value for form, value in smallest.items()}
    return Outcome("exported", metrics, proof={"format": format, **proof})


def check_splits(
    shape: Shape, format: QuantizationFormat, tensor_parallel: int, pipeline_parallel: int
) -> None:
    """Refuse numbers of ranks that the model cannot be spread over.

    Raises:
        ConfigError: names the setting and the size that does not divide.
    """
    if format.endswith("awq") and shape.vocab % 64:
        raise ConfigError(
            f"quantize.format={format}: ModelOpt would fill the vocabulary of {shape.vocab} up to "
            "a multiple of 64 with tokens that can then be generated: choose fp8 or int8_sq"
        )
    sizes = {"key-value heads": shape.kv_heads, "heads": shape.heads, "FFN columns": shape.ffn}
    for what, size in sizes.items():
        if size % tensor_parallel:
            raise ConfigError(
                f"export.tensor_parallel={tensor_parallel} does not divide the model's {size} "
                f"{what}"
            )
    if shape.layers % pipeline_parallel:
        raise ConfigError(
            f"export.pipeline_parallel={pipeline_parallel} does not divide the model's "
            f"{shape.layers} layers"
        )
    split = {"attention output": shape.heads * shape.head_dim, "FFN": shape.ffn}
    for what, size in split.items():
        columns = size // tensor_parallel
        if columns % group_of(format):
            raise ConfigError(
                f"export.tensor_parallel={tensor_parallel} leaves {columns} columns of the {what} "
                f"to a rank, and {format} needs a multiple of {group_of(format)}: lower it or "
                "choose fp8"
            )


def _check_exclude(exclude: Sequence[str], pipeline_parallel: int) -> None:
    """A rank numbers its layers from 0 on, and all ranks share one list of what is left out."""
    numbered = [name for name in exclude if re.search(r"layers\.\d", name)]
    if numbered and pipeline_parallel > 1:
        raise ConfigError(
            f"quantize.exclude names a layer by its number ({numbered[0]}), which a TensorRT-LLM "
            f"checkpoint cannot say for export.pipeline_parallel={pipeline_parallel}: set it to 1, "
            "or name a kind of layer, such as o_proj"
        )


def _require_rules(form: str, problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ProofFailed(
            f"the {form} folder breaks a rule of its format: {problems[0]}{more}; what runtimes "
            "join must be left out together (quantize.exclude), otherwise this is a fault here"
        )


def _require_scales(problems: Sequence[str]) -> None:
    if problems:
        raise ProofFailed(
            f"{problems[0]}, one of {len(problems)} scales of inputs or of the cache with which a "
            "runtime would round otherwise than what was evaluated: report it with the model's "
            "config.json"
        )


def _compare(
    source: Path, shape: Shape, qnemo: Path, unified: Path
) -> dict[str, dict[str, dict[str, float]]]:
    from pipeline.models.hf_model import WeightReader
    from pipeline.optimization.dequantize import compare
    from pipeline.optimization.exported_reader import QnemoWeights, UnifiedWeights

    with (
        WeightReader(source) as weights,
        QnemoWeights(qnemo, shape) as of_qnemo,
        UnifiedWeights(unified, weights) as of_unified,
    ):
        return compare({"qnemo": of_qnemo, "hf": of_unified}, weights, shape)


def _prove(
    form: str,
    table: Mapping[str, Mapping[str, float]],
    format: QuantizationFormat,
    exclude: Sequence[str],
) -> dict[str, Any]:
    for name, figures in table.items():
        left_out = any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in exclude)
        quantized = name.endswith("_proj.weight") and not left_out
        allowed = LINEAR[format] if quantized else COPIED
        near = abs(figures["scale"] - 1) <= allowed.scale
        if not (near and figures["cosine"] >= allowed.cosine and figures["error"] <= allowed.error):
            raise ProofFailed(
                f"{form}: {name} unpacks to cosine {figures['cosine']:.4f}, error "
                f"{figures['error']:.4f} and {figures['scale']:.4f} times the source, where "
                f"{allowed.cosine}, {allowed.error} and 1 ± {allowed.scale} are allowed: raise "
                "quantize.calibration.rows or leave the layer out (quantize.exclude); near 0 the "
                "file itself is wrong"
            )
    return {
        "smallest_cosine": min(f["cosine"] for f in table.values()),
        "largest_error": max(f["error"] for f in table.values()),
        "tensors": len(table),
        "by_tensor": {name: dict(figures) for name, figures in table.items()},
    }


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
