"""Whether formats, ranks and exclusions fit a model. Imports nothing heavy.

The planner and the stages ask the same functions, so that both refuse the same settings.
"""

import re
from collections.abc import Sequence

from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError, MissingRuntime
from pipeline.core.hardware import Machine
from pipeline.models.architecture import Shape
from pipeline.models.families import FAMILIES, check_stage
from pipeline.optimization.formats import FORMATS, without_groups


def check_quantize(config: Config, shape: Shape) -> None:
    """Refuse formats that do not fit the model.

    Raises:
        ConfigError: names the format and the size. DataError: the family cannot be quantized.
    """
    check_stage(shape.family, "quantize")
    if config.quantize.kv_cache != "none":
        record = FAMILIES[shape.family]
        if reason := record.refused.get("kv_cache"):
            raise ConfigError(
                f"quantize.kv_cache={config.quantize.kv_cache} does not take {record.title} "
                f"models: {reason}"
            )
    for format in dict.fromkeys((config.quantize.format, *config.quantize.compare)):
        is_main = format == config.quantize.format
        check_groups(format, shape, setting="quantize.format" if is_main else "quantize.compare")


def check_calibration(config: Config, machine: Machine) -> None:
    """Refuse a format that this machine cannot calibrate.

    Raises:
        MissingRuntime: calibration needs a GPU that is not here.
    """
    for format in (config.quantize.format, *config.quantize.compare):
        least = FORMATS[format].calibrates_on
        if least and not any(gpu.capability >= least for gpu in machine.gpus[:1]):
            raise MissingRuntime(needs_gpu(format))


def needs_gpu(format: str) -> str:
    """Why a format cannot be calibrated on a machine without such a GPU."""
    major, minor = FORMATS[format].calibrates_on or (0, 0)
    return (
        f"quantize.format={format} needs a GPU of compute capability {major}.{minor} or later to "
        "calibrate, and this machine has none: run this stage on such a GPU host, or choose fp8"
    )


def check_export(config: Config, shape: Shape) -> None:
    """Refuse an export that the model does not allow.

    Raises:
        ConfigError: names the setting and the size. DataError: the family cannot be exported.
    """
    check_stage(shape.family, "export")
    ranks = config.export
    check_exclude(config.quantize.exclude, ranks.pipeline_parallel)
    check_splits(shape, config.quantize.format, ranks.tensor_parallel, ranks.pipeline_parallel)


def check_validation(config: Config) -> None:
    """Refuse a split without validation rows, before any are prepared.

    Raises:
        ConfigError: prepare.validation_share is 0.
    """
    if config.prepare.validation_share == 0:
        raise ConfigError(NO_VALIDATION)


# The stage says it too, of rows that are prepared.
NO_VALIDATION = (
    "the validation split is empty, and formats are compared on it: raise prepare.validation_share "
    "and run stage=prepare again"
)


_SIZES = {"q": "heads"}


def check_groups(format: str, shape: Shape, *, setting: str = "quantize.format") -> None:
    """Refuse a format whose groups do not divide the inputs of a linear layer.

    setting: that names the format, for the message.
    """
    group = FORMATS[format].group
    inputs = [linear.inputs for linear in shape.every_layer.linears]
    sizes = {_SIZES.get(name, name): shape.size(name) for name in inputs}
    for what, size in sizes.items():
        if size % group:
            raise ConfigError(
                f"{setting}={_listed(setting, format)}: {format} shares a scale among {group} "
                f"weights, and this model's {what} size {size} is not a multiple of it: "
                + (
                    f"choose {without_groups()}"
                    if setting == "quantize.format"
                    else f"leave {format} out of quantize.compare"
                )
            )


def _listed(setting: str, format: str) -> str:
    return format if setting == "quantize.format" else f"[…, {format}]"


def check_splits(shape: Shape, format: str, tensor_parallel: int, pipeline_parallel: int) -> None:
    """Refuse numbers of ranks that the model cannot be spread over.

    Raises:
        ConfigError: names the setting and the size that does not divide.
    """
    record = FORMATS[format]
    if shape.vocab % record.vocabulary_multiple:
        raise ConfigError(
            f"quantize.format={format}: ModelOpt would pad the vocabulary of {shape.vocab} to a "
            f"multiple of {record.vocabulary_multiple} with tokens that could then be generated: "
            f"choose {without_groups()}"
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
        if columns % record.group:
            raise ConfigError(
                f"export.tensor_parallel={tensor_parallel} leaves {columns} columns of the {what} "
                f"to a rank, and {format} needs a multiple of {record.group}: lower it or "
                f"choose {without_groups()}"
            )


def check_exclude(exclude: Sequence[str], pipeline_parallel: int) -> None:
    """Refuse a numbered layer with several pipeline stages.

    A rank numbers its layers from 0 on, and all ranks share one list of excluded modules.
    """
    numbered = [name for name in exclude if re.search(r"layers\.\d", name)]
    if numbered and pipeline_parallel > 1:
        raise ConfigError(
            f"quantize.exclude names a layer by its number ({numbered[0]}), which a TensorRT-LLM "
            f"checkpoint cannot express with export.pipeline_parallel={pipeline_parallel}: set it "
            "to 1, or name a kind of layer, such as o_proj"
        )
