"""Writing a quantized model's packed weights with ModelOpt: qnemo and unified HF folders.

Each call opens the quantized folder anew, as ModelOpt's exporters alter the model. What ModelOpt
0.37 leaves out is put right here: AWQ's group size in config.json, the claim to be quantized on an
unquantized model, weights in the source's type, tokenizer files.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from pipeline.adapters import modelopt
from pipeline.checkpoints import TOKENIZER_FILES, read_shape
from pipeline.errors import PipelineError

# What stays float32 in a unified checkpoint; every other plain tensor is in the source's type.
_SCALES = ("weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale")
# ModelOpt's name of the way that Llama, Mistral and, but for a bias, Qwen2 are built: it writes the
# weights of each, and lacks only TensorRT-LLM's own fields for Qwen2.
_DECODER = "llama"
_QWEN2_FIELDS = {"qwen_type": "qwen2", "attn_bias": True, "mlp_bias": False, "seq_length": 8192}


def write_qnemo(
    quantized: Path, source: Path, out: Path, *, tensor_parallel: int, pipeline_parallel: int
) -> None:
    """Write a TensorRT-LLM checkpoint with a tokenizer.

    quantized: folder of one format, as modelopt.save left it. source: the HF folder it was made
        from, which gives the type of what is not quantized, and the tokenizer files.

    Raises:
        PipelineError: ModelOpt refuses the model.
    """
    import torch

    exporter = modelopt.modelopt().export
    model = modelopt.load(quantized)
    with _refusals(f"qnemo from {quantized}"), torch.inference_mode():
        exporter.export_tensorrt_llm_checkpoint(
            model,
            _DECODER,
            _half_type(source),
            out,
            inference_tensor_parallel=tensor_parallel,
            inference_pipeline_parallel=pipeline_parallel,
        )
    if read_shape(source).family == "qwen2":
        file = out / "config.json"
        config = json.loads(file.read_text()) | _QWEN2_FIELDS
        file.write_text(json.dumps(config, indent=4) + "\n")
    _copy_text_files(source, out)


def write_unified_hf(quantized: Path, source: Path, out: Path) -> None:
    """Write ModelOpt's unified HF checkpoint; arguments and errors as for `write_qnemo`."""
    import torch

    exporter = modelopt.modelopt().export
    model = modelopt.load(quantized)
    with _refusals(f"unified HF from {quantized}"), torch.no_grad():
        # In the type that it was calibrated in, so that weights are rounded once.
        exporter.export_hf_checkpoint(model, model.dtype, out)
    for file in sorted(out.glob("*.safetensors")):
        _store_as(file, getattr(torch, modelopt.own_dtype(source)))
    _mend_config(out, modelopt.own_dtype(source))
    _copy_text_files(source, out)


def _half_type(source: Path) -> Any:
    """The 16-bit type that TensorRT-LLM computes in: the source's if it has one."""
    import torch

    own = getattr(torch, modelopt.own_dtype(source))
    return own if own.itemsize == 2 else torch.bfloat16


def _store_as(file: Path, dtype: Any) -> None:
    """Rewrite a safetensors file with its plain tensors in another type."""
    import torch
    from safetensors.torch import load_file, save_file

    plain = (torch.float32, torch.bfloat16, torch.float16)
    tensors = {
        name: tensor.to(dtype)
        if tensor.dtype in plain and not name.endswith(_SCALES)
        else tensor.float()
        if name.endswith(_SCALES)
        else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def _mend_config(out: Path, dtype: str) -> None:
    file, quant_file = out / "config.json", out / "hf_quant_config.json"
    config = json.loads(file.read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    quantization = json.loads(quant_file.read_text())["quantization"]
    if quantization["quant_algo"] is None:
        # It would claim to be ModelOpt's, which vLLM refuses without an algorithm.
        del config["quantization_config"]
        quant_file.unlink()
    else:
        for key in ("group_size", "has_zero_point", "pre_quant_scale"):
            if key in quantization:
                config["quantization_config"][key] = quantization[key]
    file.write_text(json.dumps(config, indent=2) + "\n")


def _copy_text_files(source: Path, out: Path) -> None:
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            (out / name).write_bytes((source / name).read_bytes())


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """ModelOpt's chatter away, and its many kinds of refusal as one."""
    logger = logging.getLogger("transformers")  # warns of a name that ModelOpt uses
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
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
