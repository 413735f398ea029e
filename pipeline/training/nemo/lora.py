"""LoRA adapters on NeMo models: made, read, folded into the weights, and named as PEFT does.

new_adapter(method, sizes)     # NeMo's LoRA or DoRA, to be put on a model
write_adapter(folder, ...)     # its sizes, as adapter.json; read_adapter makes it again
adapter_layers(model)          # the matrices by layer
fold_adapter(model)            # the adapter becomes part of the weights
peft_tensors(shape, layers)    # tensors as the PEFT library names them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.finetune import AdapterConfig
from pipeline.core.errors import ArtifactError
from pipeline.models.architecture import Shape
from pipeline.training.nemo import weight_map

if TYPE_CHECKING:
    import torch
    from nemo.collections.llm import GPTModel
    from nemo.collections.llm.peft import DoRA, LoRA


ADAPTER = "adapter.json"


def new_adapter(method: str, sizes: AdapterConfig) -> LoRA | DoRA:
    """NeMo's LoRA or DoRA on every linear layer."""
    from nemo.collections.llm import peft

    make = {"lora": peft.LoRA, "dora": peft.DoRA}[method]
    return make(dim=sizes.rank, alpha=sizes.alpha, dropout=sizes.dropout)


def write_adapter(folder: Path, method: str, sizes: AdapterConfig) -> None:
    """Write what `new_adapter` was given, as adapter.json."""
    content = {"method": method, **sizes.model_dump()}
    (folder / ADAPTER).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_adapter(folder: Path) -> LoRA | DoRA:
    """The adapter that `write_adapter` described, without weights.

    Raises:
        ArtifactError: adapter.json cannot be read.
    """
    file = folder / ADAPTER
    try:
        content = json.loads(file.read_text())
        method = content.pop("method")
        sizes = AdapterConfig.model_validate(content)
        if method not in ("lora", "dora"):
            raise ValueError(f"{str(method)[:40]!r} is no method")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{file} does not describe an adapter ({type(error).__name__}): run `python -m "
            "pipeline stage=finetune` again"
        ) from error
    return new_adapter(method, sizes)


@dataclass(frozen=True)
class AdapterLayer:
    """The adapter of one linear layer, and the layer's own weights.

    weight: [outputs, inputs], bias: [outputs] or None; a: [rank, inputs], b: [outputs, rank].
    The update of the weight is scale * b @ a.
    magnitude: DoRA's row norms [outputs]; None for LoRA.
    """

    layer: int
    name: str  # Megatron's, as in the record of the model's family
    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the plain linear layer that computes the same.

        DoRA: magnitude * (W + scale B A) / |W + scale B A|, by rows (arXiv:2402.09353, equation
        5). NeMo multiplies the layer's whole output by this, and so the bias.
        """
        import torch

        weight = self.weight + self.scale * (self.b @ self.a)
        if self.magnitude is None:
            return weight, self.bias
        stretch = self.magnitude / torch.linalg.vector_norm(weight, dim=1)
        return stretch[:, None] * weight, None if self.bias is None else stretch * self.bias


def adapter_layers(model: GPTModel) -> list[AdapterLayer]:
    """The adapters on a model, in the order of its layers."""
    return [_adapter_layer(name, module) for name, module in _adapted(model)]


def fold_adapter(model: GPTModel) -> None:
    """Fold the adapters into the weights; the model then has no adapters."""
    for name, module in _adapted(model):
        linear = module.to_wrap
        weight, bias = _adapter_layer(name, module).folded()
        linear.weight.data.copy_(weight)
        if bias is not None:
            linear.bias.data.copy_(bias)
        # Set on Transformer Engine's layers for the adapter; a plain layer must not have it.
        for flag in ("return_layernorm_output", "return_layernorm_output_gathered"):
            if hasattr(linear, flag):
                setattr(linear, flag, False)
        parent, _, child = name.rpartition(".")
        setattr(model.module.get_submodule(parent), child, linear)


def peft_tensors(shape: Shape, layers: Sequence[AdapterLayer]) -> dict[str, torch.Tensor]:
    """The adapters in the HF PEFT library's form, tensors by name.

    Each part of a fused layer gets the layer's A and its own rows of B. A bias that DoRA scales
    (see AdapterLayer.folded) is included, as PEFT does not scale it.
    """
    tensors = {}
    for adapter in layers:
        rule = weight_map.linear_rule(shape, adapter.layer, adapter.name)
        bias = adapter.folded()[1] if adapter.magnitude is not None else None
        named = {"lora_B.weight": adapter.b, "lora_magnitude_vector": adapter.magnitude}
        named["base_layer.bias"] = bias
        for module in rule.hf:
            tensors[f"base_model.model.{module}.lora_A.weight"] = adapter.a
        for name, tensor in named.items():
            if tensor is not None:
                for module, part in zip(rule.hf, rule.split(shape, tensor), strict=True):
                    tensors[f"base_model.model.{module}.{name}"] = part
    return tensors


def _adapted(model: GPTModel) -> list[tuple[str, Any]]:
    """Names and modules of the layers with an adapter."""
    from nemo.lightning.pytorch.callbacks.peft import AdapterWrapper

    return [(n, m) for n, m in model.module.named_modules() if isinstance(m, AdapterWrapper)]


def _adapter_layer(name: str, module: Any) -> AdapterLayer:
    _, _, layer, linear = name.split(".", 3)  # decoder.layers.<i>.<linear>
    adapter, wrapped = module.adapter, module.to_wrap
    bias = getattr(wrapped, "bias", None)
    magnitude = getattr(adapter, "weight_magnitude", None)
    return AdapterLayer(
        layer=int(layer),
        name=linear,
        weight=wrapped.weight.detach(),
        # Transformer Engine's layers without a bias have an empty one.
        bias=bias.detach() if bias is not None and bias.numel() else None,
        a=adapter.linear_in.weight.detach(),
        b=adapter.linear_out.weight.detach(),
        scale=adapter.alpha / adapter.dim,
        magnitude=None if magnitude is None else magnitude.detach(),
    )
