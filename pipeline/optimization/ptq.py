"""Post-training quantization of HF models with NVIDIA ModelOpt.

    model = quantize(hf.load_model(folder, dtype=...), "fp8", batches, kv_cache="none", exclude=())
    save(model, folder, source)          # HF weights and ModelOpt's state beside them
    model = load(folder)                 # the same model again, quantizers and all
    fold_weights(model)                  # faster, same outputs; for evaluation only

Quantization is simulated: weights and activations are rounded to the format's values and kept in
the model's own type. export.py writes the packed weights.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pipeline.core.errors import ArtifactError, MissingRuntime
from pipeline.core.import_blocking import absent, bytecode_written, unless_found
from pipeline.core.monkeypatch import Patch, install
from pipeline.models.files import MODELOPT_STATE, WEIGHTS_INDEX, link_weights, weight_files
from pipeline.optimization.calibration import quick_maxima
from pipeline.optimization.formats import FORMATS
from pipeline.optimization.layout_rules import TYPES, read_header
from pipeline.optimization.settings_checks import needs_gpu

_QUANTIZERS = "quantizers.safetensors"

# Optional packages that ModelOpt and transformers import if they find them. Nothing here uses them,
# and they take half of the import time.
_UNUSED_BY_MODELOPT = ("megatron", "nemo", "diffusers", "trl", "vllm")
_UNUSED_BY_TRANSFORMERS = ("sklearn", "datasets", "peft", "boto3")

Batches = Sequence[Sequence[Sequence[int]]]
FP8_ROUNDING = Patch(
    owner="modelopt.torch.quantization.tensor_quant",
    names=("get_cuda_ext_fp8", "fp8_eager"),
    distribution="nvidia-modelopt",
    version="0.37.0",
    reason=(
        "It compiles a CUDA kernel on each machine, which takes longer than calibrating 8 B. torch "
        "operations round to the same bits, on a CPU too."
    ),
    digest="5d4efd45b0387c73",
    required="finetune.patches is about training; the values are the same to the bit",
)

INT_ROUNDING = Patch(
    owner="modelopt.torch.quantization.tensor_quant",
    names=("fake_quant_impl",),
    distribution="nvidia-modelopt",
    version="0.37.0",
    reason=(
        "It compiles a CUDA kernel on each machine: 23 of the 44 s of the demo's stage on an "
        "H200. torch operations round to the same values."
    ),
    digest="a60002e21c2034cb",
    required="finetune.patches is about training; the values are the same",
)

ATTENTION_QUANTIZERS = Patch(
    owner="modelopt.torch.quantization.plugins.huggingface",
    names=("register_attention_for_kv_quant",),
    distribution="nvidia-modelopt",
    version="0.37.0",
    reason=(
        "It fails where a method of an attention class is decorated, as Nemotron's, though nothing "
        "asked for a quantized cache. Such an attention stays as it is."
    ),
    digest="2c9073f29641beb0",
    source=("modelopt.torch.quantization.plugins.attention:register_attention_for_kv_quant",),
    required="no model of such a family could be quantized",
)


def compute_dtype(folder: Path) -> str:
    """The type to calibrate and evaluate a model in: its own on a GPU, float32 on a CPU."""
    import torch

    return own_dtype(folder) if torch.cuda.is_available() else "float32"


def own_dtype(folder: Path) -> str:
    """The type of the weights as config.json says it, or else the type of the first weight."""
    config = json.loads((folder / "config.json").read_text())
    if said := config.get("dtype") or config.get("torch_dtype"):
        return str(said)
    header = read_header(weight_files(folder)[0])
    return next(name for name, kind in TYPES.items() if kind == next(iter(header.values()))[0])


def require_runtime(format: str) -> None:
    """Refuse a format that cannot be calibrated here.

    Raises:
        MissingRuntime: its calibration needs a GPU that this machine does not have.
    """
    least = FORMATS[format].calibrates_on
    if least is None:
        return
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < least:
        raise MissingRuntime(needs_gpu(format))


def quantize(
    model: Any, format: str, batches: Batches, *, kv_cache: str, exclude: Sequence[str]
) -> Any:
    """Insert quantizers into an HF model and calibrate them; changes and returns the model.

    batches: token ids, [batch][row][token]; the rows of a batch are of one length, as statistics
        are taken over every token.
    kv_cache: "fp8" quantizes keys and values too, "none" does not.
    exclude: modules whose name contains one of these are not quantized.
    """
    import torch

    mtq = modelopt().quantization
    named = FORMATS[format].modelopt
    config: Any = copy.deepcopy(getattr(mtq, named) if isinstance(named, str) else named)
    if kv_cache == "fp8":
        config["quant_cfg"] |= copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    config["quant_cfg"] |= {f"*{name}*": {"enable": False} for name in exclude}

    def feed(model: Any) -> None:
        with quick_maxima():
            for batch in batches:
                ids = torch.tensor(batch, device=model.device)
                # No format quantizes the output layer; skipping it saves a tenth of the work.
                model(input_ids=ids, use_cache=False, logits_to_keep=1)

    with torch.no_grad(), redirect_stdout(io.StringIO()):
        return mtq.quantize(model, config, feed)


def save(model: Any, folder: Path, source: Path | None = None) -> None:
    """Write an HF folder that `load` opens: weights before rounding, and ModelOpt's state.

    source: folder of the model that was quantized, if the format keeps its weights: they are
        linked then, and only the quantizers' values are written.
    """
    import torch
    from safetensors.torch import save_file

    described = _in_order(modelopt().opt.modelopt_state(model))
    if source is None:
        with redirect_stdout(io.StringIO()):
            model.save_pretrained(folder)
        torch.save(described, folder / MODELOPT_STATE)
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
    torch.save(described, folder / MODELOPT_STATE)


def _in_order(state: dict[str, Any]) -> dict[str, Any]:
    """ModelOpt's state with each quantizer's properties by name, so that two processes write the
    same bytes: ModelOpt takes their names from a set. All else has an order of its own."""
    modes = []
    for mode, described in state["modelopt_state_dict"]:
        metadata = dict(described["metadata"])
        if quantizers := metadata.get("quantizer_state"):
            metadata["quantizer_state"] = {
                name: dict(sorted(properties.items())) for name, properties in quantizers.items()
            }
        modes.append((mode, {**described, "metadata": metadata}))
    return {**state, "modelopt_state_dict": modes}


def load(folder: Path) -> Any:
    """Open what `save` wrote, in evaluation mode and its own type, on the GPU if there is one.

    The state beside the weights is a pickle. Only plain values and tensors are read from it.

    Raises:
        ArtifactError: the state holds any other object.
    """
    modelopt()
    from pipeline.models import hf_model

    with redirect_stdout(io.StringIO()):
        try:
            return hf_model.load_model(folder, dtype=own_dtype(folder), quantized=True)
        except pickle.UnpicklingError as error:
            raise ArtifactError(
                f"{folder / MODELOPT_STATE} holds objects that ModelOpt does not write, so it is "
                "not opened: run `python -m pipeline stage=quantize` again"
            ) from error


def fold_weights(model: Any) -> None:
    """Round the weights once instead of at each step. Outputs stay the same; do not save it."""
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
    """Bytes of the packed weights with their scales.

    plain_bytes: of a weight that is not quantized (2 for bfloat16).
    """
    total = sum(p.numel() for p in model.parameters()) * plain_bytes
    for module in _quantized_modules(model):
        saved = int(module.weight.numel() * (8 * plain_bytes - FORMATS[format].calibrated_bits) / 8)
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
    unused = _UNUSED_BY_MODELOPT + unless_found(*_UNUSED_BY_TRANSFORMERS)
    with absent(*unused), bytecode_written(), warnings.catch_warnings():
        # It wants an older transformers than NeMo does; each run proves the parts that are used.
        warnings.filterwarnings("ignore", "transformers version", UserWarning)
        import modelopt.torch.export
        import modelopt.torch.opt
        import modelopt.torch.quantization
    from transformers import PreTrainedModel

    with redirect_stdout(io.StringIO()):
        modelopt.torch.opt.enable_huggingface_checkpointing()
    # ModelOpt ignores failed imports silently; without this patch it saves no quantizers.
    if not hasattr(PreTrainedModel, "_modelopt_cache"):
        raise MissingRuntime(
            "ModelOpt found no transformers that it knows, so it cannot save quantized models: "
            "install the locked versions (requirements.lock)"
        )
    from pipeline.optimization.fp8_simulation import round_to_fp8
    from pipeline.optimization.int_simulation import round_to_int

    install(
        FP8_ROUNDING.by(get_cuda_ext_fp8=lambda raise_if_failed=False: None, fp8_eager=round_to_fp8)
    )
    install(INT_ROUNDING.by(fake_quant_impl=round_to_int))
    register = ATTENTION_QUANTIZERS.original("register_attention_for_kv_quant")

    def register_if_possible(attention: type) -> bool:
        try:
            return bool(register(attention))
        except AssertionError:
            return False

    install(ATTENTION_QUANTIZERS.by(register_attention_for_kv_quant=register_if_possible))
    return modelopt.torch
