"""Post-training quantization of HF models with NVIDIA ModelOpt.

    model = quantize(hf.load_model(folder, dtype=...), "fp8", batches, kv_cache="none", exclude=())
    save(model, folder, source)          # HF weights and ModelOpt's state beside them
    model = load(folder)                 # the same model again, quantizers and all
    fold_weights(model)                  # faster, same outputs; for evaluation only

Quantization is simulated: weights and activations are rounded to the format's values and kept in
the model's own type. Writing the packed weights is modelopt_export's. Knows nothing of text.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from pipeline.core.errors import ArtifactError, MissingRuntime
from pipeline.core.import_blocking import absent
from pipeline.core.monkeypatch import Patch, install
from pipeline.models.files import WEIGHTS_INDEX, link_weights, weight_files
from pipeline.optimization.calibration import quick_maxima
from pipeline.optimization.formats import TYPES, read_header

# ModelOpt's configuration of each format, and bits of a packed weight.
_CONFIGS = {
    "fp8": "FP8_DEFAULT_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
# NVFP4's scales are no part of the calibrated state: eight bits for sixteen weights.
_WEIGHT_BITS = {"fp8": 8, "int8_sq": 8, "int4_awq": 4, "w4a8_awq": 4, "nvfp4": 4.5}
# Formats whose calibration finds largest values alone; the others scale the weights, too.
WEIGHTS_KEPT = ("fp8", "nvfp4")
_QUANTIZERS = "quantizers.safetensors"
_STATE = "modelopt_state.pth"  # ModelOpt's name

# Optional packages that ModelOpt, and transformers, import when they find them, which takes half of
# the time to import both, and of which nothing here uses a thing.
_UNUSED_BY_MODELOPT = ("megatron", "nemo", "diffusers", "trl", "vllm")
_UNUSED_BY_TRANSFORMERS = ("sklearn", "datasets", "peft", "boto3")

Batches = Sequence[Sequence[Sequence[int]]]
FP8_ROUNDING = Patch(
    owner="modelopt.torch.quantization.tensor_quant",
    names=("get_cuda_ext_fp8", "fp8_eager"),
    library="nvidia-modelopt",
    version="0.37.0",
    reason=(
        "It compiles a CUDA kernel on each machine, which takes longer than calibrating 8 B. torch "
        "operations round to the same bits, on a CPU too."
    ),
    digest="5d4efd45b0387c73",
    required="finetune.patches is about training; the values are the same to the bit",
)


def compute_dtype(folder: Path) -> str:
    """The type to calibrate and evaluate a model in: its own on a GPU, on a CPU float32."""
    import torch

    return own_dtype(folder) if torch.cuda.is_available() else "float32"


def own_dtype(folder: Path) -> str:
    """The type that an HF folder says its weights have, or the first of them has."""
    config = json.loads((folder / "config.json").read_text())
    if said := config.get("dtype") or config.get("torch_dtype"):
        return str(said)
    header = read_header(weight_files(folder)[0])
    return next(name for name, kind in TYPES.items() if kind == next(iter(header.values()))[0])


def require_runtime(format: str) -> None:
    """Refuse a format that cannot be simulated here.

    Raises:
        MissingRuntime: NVFP4 without a GPU that has FP8 instructions.
    """
    if format != "nvfp4":
        return
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        raise MissingRuntime(
            "quantize.format=nvfp4 needs a GPU to calibrate (Ada, Hopper or Blackwell; to serve, "
            "Blackwell) and this machine has none: run this stage on a GPU host, or choose fp8"
        )


def quantize(
    model: Any, format: str, batches: Batches, *, kv_cache: str, exclude: Sequence[str]
) -> Any:
    """Insert quantizers into an HF model and calibrate them; changes and returns the model.

    batches: token ids, [batch][row][token]; the rows of a batch are of one length, as statistics
        are taken over every token.
    kv_cache: "fp8" quantizes keys and values too, "none" does not.
    exclude: modules whose name contains one of these stay as they are.
    """
    import torch

    mtq = modelopt().quantization
    config = copy.deepcopy(getattr(mtq, _CONFIGS[format]))
    if kv_cache == "fp8":
        config["quant_cfg"] |= copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    config["quant_cfg"] |= {f"*{name}*": {"enable": False} for name in exclude}

    def feed(model: Any) -> None:
        with quick_maxima():
            for batch in batches:
                ids = torch.tensor(batch, device=model.device)
                # The output layer stays as it is in every format: a tenth of the work is saved.
                model(input_ids=ids, use_cache=False, logits_to_keep=1)

    with torch.no_grad(), redirect_stdout(io.StringIO()):
        return mtq.quantize(model, config, feed)


def save(model: Any, folder: Path, source: Path | None = None) -> None:
    """Write an HF folder that `load` opens: weights before rounding, and ModelOpt's state.

    source: folder of the model that was quantized, if its weights were kept (WEIGHTS_KEPT): they
        are linked then, and only the quantizers' values are written.
    """
    import torch
    from safetensors.torch import save_file

    torch_opt = modelopt().opt
    if source is None:
        with redirect_stdout(io.StringIO()):
            model.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    # transformers would take a file of the usual name for the whole model, index or not.
    weight_map = link_weights(source, folder, prefix="source-")
    state = {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if "_quantizer." in name
    }
    save_file(state, folder / _QUANTIZERS, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(state, _QUANTIZERS)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    # As ModelOpt's own save_pretrained does.
    torch.save(torch_opt.modelopt_state(model), folder / _STATE)


def load(folder: Path) -> Any:
    """Open what `save` wrote, in evaluation mode and its own type, on the GPU if there is one.

    The state beside the weights is a pickle: only its plain values and tensors are read, and any
    other object in it is an error.

    Raises:
        ArtifactError: the state holds anything else.
    """
    modelopt()
    from pipeline.models import hf_model

    with _only_plain_pickles(), redirect_stdout(io.StringIO()):
        try:
            return hf_model.load_model(folder, dtype=own_dtype(folder))
        except pickle.UnpicklingError as error:
            raise ArtifactError(
                f"{folder / _STATE} holds objects that ModelOpt does not write, so it is "
                "not opened: run `python -m pipeline stage=quantize` again"
            ) from error


def fold_weights(model: Any) -> None:
    """Round the weights once instead of at each step. Outputs stay; it is not to be saved then."""
    mtq = modelopt().quantization
    for module in _quantized_modules(model):
        module.weight.data = module.weight_quantizer(module.weight.data)
        quantizer = module.weight_quantizer
        parts = quantizer if isinstance(quantizer, mtq.nn.SequentialQuantizer) else [quantizer]
        for part in parts:
            part.disable()


def weight_errors(model: Any) -> dict[str, float]:
    """|rounded - weight| / |weight| (Frobenius norms) of each quantized module, by its name.

    Weights are as they are rounded: after AWQ's or SmoothQuant's scaling of the inputs.
    """
    import torch

    names = {module: name for name, module in model.named_modules()}
    errors = {}
    with torch.no_grad():
        for module in _quantized_modules(model):
            weight = module.weight.float()
            error = (module.weight_quantizer(weight) - weight).norm() / weight.norm()
            errors[names[module]] = float(error)
    return errors


def packed_bytes(model: Any, format: str, *, plain_bytes: int) -> int:
    """Bytes that the weights take once they are packed, with their scales.

    plain_bytes: of a weight that is not quantized (2 for bfloat16).
    """
    total = sum(p.numel() for p in model.parameters()) * plain_bytes
    for module in _quantized_modules(model):
        saved = int(module.weight.numel() * (8 * plain_bytes - _WEIGHT_BITS[format]) / 8)
        state = [*module.weight_quantizer.buffers(), *module.input_quantizer.buffers()]
        total += sum(buffer.numel() * 4 for buffer in state) - saved
    return total


def _quantized_modules(model: Any) -> Iterator[Any]:
    """Modules whose weight is rounded."""
    for module in model.modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_enabled:
            yield module


@functools.cache
def modelopt() -> Any:
    """`modelopt.torch`, imported without what it does not need, with saving and opening enabled."""
    # transformers looks only once for what is installed.
    fresh = "transformers" not in sys.modules
    unused = _UNUSED_BY_MODELOPT + (_UNUSED_BY_TRANSFORMERS if fresh else ())
    with absent(*unused), warnings.catch_warnings():
        # It asks for an older transformers than NeMo does; what we use of it is proven at each run.
        warnings.filterwarnings("ignore", "transformers version", UserWarning)
        import modelopt.torch.export
        import modelopt.torch.opt
        import modelopt.torch.quantization
    from transformers import PreTrainedModel

    with redirect_stdout(io.StringIO()):
        modelopt.torch.opt.enable_huggingface_checkpointing()
    # ModelOpt passes over in silence what it fails to import; without this it saves no quantizers.
    if not hasattr(PreTrainedModel, "_modelopt_cache"):
        raise MissingRuntime(
            "ModelOpt found no transformers that it knows, so it cannot save quantized models: "
            "install the locked versions (requirements.lock)"
        )
    from pipeline.optimization.fp8_simulation import round_to_fp8

    install(
        FP8_ROUNDING.by(get_cuda_ext_fp8=lambda raise_if_failed=False: None, fp8_eager=round_to_fp8)
    )
    return modelopt.torch


@contextmanager
def _only_plain_pickles() -> Iterator[None]:
    """Within it `torch.load` reads tensors and plain values alone, whatever its caller asks for.

    ModelOpt's loader asks for any object; torch has this variable to overrule such callers.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
