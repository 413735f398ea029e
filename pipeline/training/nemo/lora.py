"""LoRA adapters on NeMo models: made, read, folded into the weights, and named as PEFT does.

new_adapter(method, settings, shape)   # NeMo's LoRA or DoRA, to be put on a model
freeze_other_rows(module, ...)         # where an adapter is on a part of a fused layer
write_adapter(folder, ...)             # its settings, as adapter.json; read_adapter reads them
adapter_layers(model)                  # the matrices by layer
fold_adapter(model)                    # the adapter becomes part of the weights
peft_tensors(shape, settings, layers)  # tensors as the PEFT library names them

Megatron-Core fuses layers of HF: query, key and value, and gate and up. Their adapter has one A,
and the rows of B are those of the fused layer. An adapter on a part of it (target_modules) leaves
the other rows of B zero, and DoRA's magnitudes there as they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.finetune import AdapterConfig
from pipeline.core.errors import ArtifactError
from pipeline.models.architecture import Shape
from pipeline.training.adapter_targets import saved_modules, targets
from pipeline.training.nemo import weight_map

if TYPE_CHECKING:
    import torch
    from nemo.collections.llm import GPTModel
    from nemo.collections.llm.peft import DoRA, LoRA


ADAPTER = "adapter.json"


def new_adapter(method: str, settings: AdapterConfig, shape: Shape) -> LoRA | DoRA:
    """NeMo's LoRA or DoRA on the chosen linear layers of a model."""
    from nemo.collections.llm import peft

    make = {"lora": peft.LoRA, "dora": peft.DoRA}[method]
    # NeMo multiplies by alpha / rank.
    alpha = settings.alpha * math.sqrt(settings.rank) if settings.rslora else settings.alpha
    found = targets(settings.target_modules, shape.every_layer)
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in found))  # NeMo matches the ends
    made = make(target_modules=names, dim=settings.rank, alpha=alpha, dropout=settings.dropout)
    if saved := saved_parameters(settings, shape):
        freeze = made.freeze_model

        def freeze_others(model: torch.nn.Module) -> None:
            freeze(model)
            for name, parameter in model.named_parameters():
                if name.endswith(saved):
                    parameter.requires_grad = True

        # NeMo saves and restores what has a gradient.
        made.freeze_model = freeze_others
    return made


def saved_parameters(settings: AdapterConfig, shape: Shape) -> tuple[str, ...]:
    """Ends of the names of Megatron-Core's parameters that are trained whole."""
    return tuple(saved_modules(settings.modules_to_save, tied=shape.tied).values())


def write_adapter(folder: Path, method: str, settings: AdapterConfig) -> None:
    """Write what `new_adapter` was given, as adapter.json."""
    content = {"method": method, **settings.model_dump(mode="json")}
    (folder / ADAPTER).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_adapter(folder: Path) -> tuple[str, AdapterConfig]:
    """The method and settings that `write_adapter` wrote.

    Raises:
        ArtifactError: adapter.json cannot be read.
    """
    file = folder / ADAPTER
    try:
        content = json.loads(file.read_text())
        method = content.pop("method")
        settings = AdapterConfig.model_validate(content)
        if method not in ("lora", "dora"):
            raise ValueError(f"{str(method)[:40]!r} is no method")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{file} does not describe an adapter ({type(error).__name__}): run `python -m "
            "pipeline stage=finetune` again"
        ) from error
    return method, settings


def freeze_other_rows(module: torch.nn.Module, settings: AdapterConfig, shape: Shape) -> None:
    """Keep an adapter on a part of a fused layer from training the rows of the other parts.

    Such a parameter gets the attribute `frozen`, its elements that are not trained on this rank.
    """
    for wrapper, chosen in partly_adapted(module, settings, shape):
        for parameter in rows_of(wrapper.adapter):
            axes = (-1, *[1] * (parameter.dim() - 1))
            keep = chosen.to(parameter.device, parameter.dtype).view(axes)
            parameter.register_hook(lambda gradient, keep=keep: gradient * keep)
            parameter.frozen = int((~chosen).sum()) * (parameter.numel() // len(chosen))


def restore_other_magnitudes(model: GPTModel, settings: AdapterConfig, shape: Shape) -> None:
    """Give rows without an adapter the magnitudes of their weights, in the model's precision.

    A GPU trains with magnitudes in bfloat16, and rounds the weight's norm alike.
    """
    import torch

    for wrapper, chosen in partly_adapted(model.module, settings, shape):
        if hasattr(wrapper.adapter, "weight_magnitude"):
            magnitude = wrapper.adapter.weight_magnitude
            other = ~chosen.to(magnitude.device)
            with torch.no_grad():
                magnitude[other] = wrapper._get_weight_norm()[other].to(magnitude.dtype)


def rows_of(adapter: Any) -> list[torch.nn.Parameter]:
    """The parameters of an adapter that have a row for each output of the layer."""
    magnitude = getattr(adapter, "weight_magnitude", None)
    return [adapter.linear_out.weight, *([] if magnitude is None else [magnitude])]


def partly_adapted(
    module: torch.nn.Module, settings: AdapterConfig, shape: Shape
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Fused layers with an adapter on a part of them, and which rows are the part's: [rows], bool.

    The rows are those of this tensor-parallel rank: whole groups of attention, or its share of
    each part.
    """
    import torch

    found = targets(settings.target_modules, shape.every_layer)
    linears = {linear.megatron: linear for linear in shape.every_layer.linears}
    for name, wrapper in _adapted(module):
        linear = linears[_linear_of(name)]
        parts = found[linear.megatron]
        if parts == linear.parts:
            continue
        count = len(wrapper.adapter.linear_out.weight)
        ranks = shape.rows(linear.outputs) // count
        sizes = {size: getattr(shape, size) // ranks for size in ("heads", "kv_heads", "ffn")}
        rule = weight_map.linear_rule(shape, _number_of(name), linear.megatron)
        rows = rule.split(replace(shape, **sizes), torch.arange(count))
        chosen = torch.zeros(count, dtype=torch.bool)
        for part, numbers in zip(linear.parts, rows, strict=True):
            chosen[numbers] = part in parts
        yield wrapper, chosen


@dataclass(frozen=True)
class AdapterLayer:
    """The adapter of one linear layer, and the layer's own weights.

    weight: [outputs, inputs], bias: [outputs] or None; a: [rank, inputs], b: [outputs, rank].
    The update of the weight is scale * b @ a.
    magnitude: DoRA's row norms [outputs]; None for LoRA.
    late_bias: the bias is no part of the layer's output, as Megatron-Core adds it later.
    """

    layer: int
    name: str  # Megatron's, as in the record of the model's family
    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None
    late_bias: bool = False

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the plain linear layer that computes the same.

        DoRA: magnitude * (W + scale B A) / |W + scale B A|, by rows (arXiv:2402.09353, equation
        5). NeMo multiplies the layer's whole output by this, and so the bias, if it is a part.
        """
        import torch

        weight = self.weight + self.scale * (self.b @ self.a)
        if self.magnitude is None:
            return weight, self.bias
        stretch = self.magnitude / torch.linalg.vector_norm(weight, dim=1)
        bias = self.bias if self.bias is None or self.late_bias else stretch * self.bias
        return stretch[:, None] * weight, bias


def adapter_layers(model: GPTModel) -> list[AdapterLayer]:
    """The adapters on a model, in the order of its layers."""
    return [_adapter_layer(name, module) for name, module in _adapted(model.module)]


def fold_adapter(model: GPTModel) -> None:
    """Fold the adapters into the weights; the model then has no adapters."""
    for name, module in _adapted(model.module):
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


def peft_tensors(
    shape: Shape, settings: AdapterConfig, layers: Sequence[AdapterLayer]
) -> dict[str, torch.Tensor]:
    """The adapters in the HF PEFT library's form, tensors by name.

    Each chosen part of a fused layer gets the layer's A and its own rows of B. A bias that DoRA
    scales (see AdapterLayer.folded) is included, as PEFT does not scale it.
    """
    tensors = {}
    found = targets(settings.target_modules, shape.every_layer)
    for adapter in layers:
        rule = weight_map.linear_rule(shape, adapter.layer, adapter.name)
        chosen = [f"model.layers.{adapter.layer}.{part.hf}" for part in found[adapter.name]]
        bias = adapter.folded()[1] if adapter.magnitude is not None else None
        named = {"lora_B.weight": adapter.b, "lora_magnitude_vector": adapter.magnitude}
        named["base_layer.bias"] = bias
        for module in chosen:
            tensors[f"base_model.model.{module}.lora_A.weight"] = adapter.a
        for name, tensor in named.items():
            if tensor is not None:
                for module, part in zip(rule.hf, rule.split(shape, tensor), strict=True):
                    if module in chosen:
                        tensors[f"base_model.model.{module}.{name}"] = part
    return tensors


def _adapted(module: torch.nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of the layers with an adapter."""
    from nemo.lightning.pytorch.callbacks.peft import AdapterWrapper

    return [(n, m) for n, m in module.named_modules() if isinstance(m, AdapterWrapper)]


def _number_of(name: str) -> int:
    """The layer's number: what follows layers, whatever the model is wrapped in."""
    return int(name.partition("layers.")[2].partition(".")[0])


def _linear_of(name: str) -> str:
    """The layer's name in the record of its family: what follows layers.<i>."""
    return name.partition("layers.")[2].partition(".")[2]


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
        # Megatron-Core's own layers, and Transformer Engine's.
        late_bias=getattr(wrapped, "skip_bias_add", False)
        or getattr(wrapped, "te_return_bias", False),
    )
