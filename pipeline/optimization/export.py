"""Writes a quantized model's packed weights with ModelOpt, as qnemo and as unified HF folders.

Each call opens the quantized folder again, because ModelOpt's exporters change the model. The
module also corrects what ModelOpt 0.37 leaves out or gets wrong: AWQ's group size in config.json,
a quantization_config on an unquantized model, one scale for FP8 layers that runtimes join, weights
in the source's type, the name of the model's architecture, tokenizer files.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.monkeypatch import Patch, Replacement, replaced
from pipeline.models.architecture import read_shape
from pipeline.models.families import FAMILIES
from pipeline.models.files import TOKENIZER_FILES
from pipeline.optimization import ptq
from pipeline.optimization.formats import FORMATS, Format

if TYPE_CHECKING:
    import torch

# What stays float32 in a unified checkpoint; every other plain tensor is in the source's type.
_SCALES = ("weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale")
NVFP4_PACKING = Patch(
    owner="modelopt.torch.quantization.qtensor.nvfp4_tensor",
    names=("fp4_compatible",),
    distribution="nvidia-modelopt",
    version="0.37.0",
    reason="It asks for a GPU's FP4 instructions, for a kernel that exporting does not use.",
    digest="2796d656e9611cc0",
    reads=("modelopt.torch.quantization.qtensor.nvfp4_tensor:NVFP4QTensor.quantize",),
    required="it raises where there is no GPU",
)
PREQUANT_FUSION = Patch(
    owner="modelopt.torch.export.unified_export_hf",
    names=("fuse_prequant_layernorm",),
    distribution="nvidia-modelopt",
    version="0.37.0",
    reason=(
        "It multiplies a norm's weight by AWQ's vector, where Gemma's norms multiply by "
        "(weight + 1), and leaves a layer norm's bias as it is."
    ),
    digest="3227be4852e47117",
    source=("modelopt.torch.export.quant_utils:fuse_prequant_layernorm",),
    required="AWQ of such a family would be another model",
)
UNQUANTIZED_EXPERTS = Patch(
    owner="modelopt.torch.export.unified_export_hf",
    names=("requantize_resmooth_fused_llm_layers",),
    distribution="nvidia-modelopt",
    version="0.37.0",
    reason="It looks for a word in the name of the format, and there is none without a format.",
    digest="65769657ecac5901",
    required="an unquantized model with experts cannot be exported",
)


def write_qnemo(
    quantized: Path,
    source: Path,
    out: Path,
    *,
    format: str,
    tensor_parallel: int,
    pipeline_parallel: int,
) -> None:
    """Write a TensorRT-LLM checkpoint with a tokenizer.

    quantized: folder of one format, as ptq.save wrote it. source: the HF folder it was made
        from, which gives the type of what is not quantized, and the tokenizer files.

    Raises:
        PipelineError: ModelOpt refuses the model.
    """
    import torch

    exporter = ptq.modelopt().export
    target = FAMILIES[read_shape(source).family].trtllm
    assert target is not None  # such a form is not asked for
    model = ptq.load(quantized)
    with _refusals(f"qnemo from {quantized}"), torch.inference_mode():
        exporter.export_tensorrt_llm_checkpoint(
            model,
            target.decoder,
            _half_type(source),
            out,
            inference_tensor_parallel=tensor_parallel,
            inference_pipeline_parallel=pipeline_parallel,
        )
    file = out / "config.json"
    config = json.loads(file.read_text())
    config |= {"architecture": target.architecture, **target.fields}
    _name_algorithm(config["quantization"], FORMATS[format])
    file.write_text(json.dumps(config, indent=4) + "\n")
    _copy_text_files(source, out)


def write_unified_hf(quantized: Path, source: Path, out: Path, *, format: str) -> None:
    """Write ModelOpt's unified HF checkpoint; arguments and errors as for `write_qnemo`."""
    import torch

    from pipeline.models import hf_model

    exporter = ptq.modelopt().export
    model = ptq.load(quantized)
    own = ptq.own_dtype(source)

    def save(folder: Path, *, state_dict: Mapping[str, torch.Tensor], **_: Any) -> None:
        """Replaces transformers' writer: writes shards in parallel, and plain tensors in `own`."""
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        wanted = getattr(torch, own)
        typed = ((name, _typed(name, tensor, wanted)) for name, tensor in state_dict.items())
        hf_model.write_weights(folder, typed, dtype=None)

    model.save_pretrained = save
    zero_centered = FAMILIES[read_shape(source).family].zero_centered
    fusion = replaced(_norms_with_prescale(zero_centered))
    with _refusals(f"unified HF from {quantized}"), torch.no_grad(), fusion:
        storage = FORMATS[format].storage
        if storage and storage.scale == "tensor":
            _join_scales(model, read_shape(source).layer.joined)
        # In the type that it was calibrated in, so that weights are rounded only once.
        with nullcontext() if storage else replaced(_no_joint_scales()):
            exporter.export_hf_checkpoint(model, model.dtype, out)
    del model.save_pretrained  # its closure holds the model, and memory may not fit two
    _correct_config(out, source, own, FORMATS[format])
    _copy_text_files(source, out)


def _norms_with_prescale(zero_centered: bool) -> list[Replacement]:
    """AWQ's vector in the norm in front of a layer, for norms of every kind."""
    import torch

    fuse = PREQUANT_FUSION.original("fuse_prequant_layernorm")
    centre = 1.0 if zero_centered else 0.0

    def into_norm(norm: Any, modules: list[Any]) -> None:
        scale = modules[0].input_quantizer._pre_quant_scale
        if getattr(norm, "bias", None) is not None:
            norm.bias = torch.nn.Parameter(norm.bias * scale)
        norm.weight = torch.nn.Parameter(norm.weight + centre)
        fuse(norm, modules)
        norm.weight = torch.nn.Parameter(norm.weight - centre)

    return PREQUANT_FUSION.by(fuse_prequant_layernorm=into_norm)


def _join_scales(model: Any, joined: Sequence[Sequence[str]]) -> None:
    """Give layers that runtimes join the largest of their scales, so that none is rounded again.

    ModelOpt does so for qnemo, and for the unified folder in all but FP8.
    """
    tools = ptq.modelopt().export.quant_utils
    for module in model.modules():
        for names in joined:
            if all(hasattr(module, name) for name in names):
                tools.preprocess_linear_fusion([getattr(module, name) for name in names])


def _no_joint_scales() -> list[Replacement]:
    """An unquantized model has no scales that layers could share."""
    return UNQUANTIZED_EXPERTS.by(requantize_resmooth_fused_llm_layers=lambda model: None)


def _name_algorithm(quantization: dict[str, Any], format: Format) -> None:
    """Correct the `quant_algo` of a format that ModelOpt writes under another one's name."""
    storage = format.storage
    if storage and quantization["quant_algo"] == storage.modelopt_algorithm:
        quantization["quant_algo"] = storage.algorithm


def _half_type(source: Path) -> torch.dtype:
    """The 16-bit type that TensorRT-LLM computes in: the source's if it has one."""
    import torch

    own: torch.dtype = getattr(torch, ptq.own_dtype(source))
    return own if own.itemsize == 2 else torch.bfloat16


def _typed(name: str, tensor: torch.Tensor, plain: torch.dtype) -> torch.Tensor:
    """A tensor of a unified checkpoint in the type that it is stored in."""
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return tensor  # packed weights, and scales in FP8
    return tensor.float() if name.endswith(_SCALES) else tensor.to(plain)


def _correct_config(out: Path, source: Path, dtype: str, format: Format) -> None:
    file, quant_file = out / "config.json", out / "hf_quant_config.json"
    config = json.loads(file.read_text())
    config["dtype"] = config["torch_dtype"] = dtype  # by its new name and its old one
    # transformers writes its own class, which may not be the name of the family.
    config["architectures"] = json.loads((source / "config.json").read_text())["architectures"]
    quant_config = json.loads(quant_file.read_text())
    quantization = quant_config["quantization"]
    if quantization["quant_algo"] is None:
        # vLLM refuses a quantization_config of ModelOpt's without an algorithm.
        del config["quantization_config"]
        quant_file.unlink()
    else:
        _name_algorithm(quantization, format)
        quant_file.write_text(json.dumps(quant_config, indent=4) + "\n")
        for key in ("quant_algo", "group_size", "has_zero_point", "pre_quant_scale"):
            if key in quantization:
                config["quantization_config"][key] = quantization[key]
    file.write_text(json.dumps(config, indent=2) + "\n")


def _copy_text_files(source: Path, out: Path) -> None:
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            (out / name).write_bytes((source / name).read_bytes())
    if not (source / "generation_config.json").is_file():
        from transformers import GenerationConfig, PretrainedConfig

        # As transformers makes one of config.json: the ids at which an answer ends.
        config = PretrainedConfig.from_pretrained(source)
        GenerationConfig.from_model_config(config).save_pretrained(out)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Silence ModelOpt, and turn its many exceptions into one error."""
    logger = logging.getLogger("transformers")  # warns about a name that ModelOpt uses
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), _packing_anywhere():
            warnings.simplefilter("ignore")
            yield
    except (AssertionError, NotImplementedError, AttributeError, KeyError, ValueError) as error:
        raise PipelineError(
            f"ModelOpt cannot write {what}: {type(error).__name__} {error}; change quantize.format "
            "or quantize.exclude (layers that runtimes fuse, as q_proj with k_proj and v_proj, go "
            "together) and run stage=quantize again"
        ) from error
    finally:
        logger.setLevel(level)


@contextmanager
def _packing_anywhere() -> Iterator[None]:
    """ModelOpt packs NVFP4 without a GPU within it, as it does every other format.

    It first checks whether the GPU has FP4 instructions, for a kernel of TensorRT-LLM that export
    never uses, and the check fails where there is no GPU.
    """
    with replaced(NVFP4_PACKING.by(fp4_compatible=lambda: False)):
        yield
