"""Where each weight of an HF model is in a Megatron-Core model, for both directions.

Megatron keeps query, key and value in one matrix whose rows are interleaved group by group
(g query heads, one key head, one value head, and again), and gate and up projection in one matrix,
gate first. The record of the model's family (models/families) names the tensors of both;
`Rule.fuse` and `Rule.split` convert between them. Adapters follow the same rules, as their B
matrices have the rows of the weights.

Names are those of Transformer Engine's layers, which are also those in a saved distributed
checkpoint. Megatron's local layers keep the two layer norms as modules of their own: `local_name`.
Needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models.architecture import EMBEDDING, FINAL_NORM, LM_HEAD, Shape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rule:
    """HF tensors, and the Megatron tensor that holds their rows."""

    hf: tuple[str, ...]
    megatron: str
    interleaved: bool = False  # rows by attention group, instead of one after another

    def fuse(self, shape: Shape, parts: Iterable[torch.Tensor]) -> torch.Tensor:
        """The Megatron tensor of the HF tensors, [rows, ...] each."""
        import torch

        tensors = list(parts)
        if len(tensors) == 1:
            return tensors[0]
        if not self.interleaved:
            return torch.cat(tensors)
        rest = tensors[0].shape[1:]
        grouped = [t.reshape(shape.kv_heads, -1, *rest) for t in tensors]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)

    def split(self, shape: Shape, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The HF tensors of a Megatron tensor: of a weight, a bias, a magnitude or a LoRA B."""
        if len(self.hf) == 1:
            return [tensor]
        rest = tensor.shape[1:]
        if not self.interleaved:
            return list(tensor.chunk(len(self.hf)))
        group = shape.heads // shape.kv_heads * shape.head_dim
        grouped = tensor.reshape(shape.kv_heads, -1, *rest)
        parts = grouped.split([group, shape.head_dim, shape.head_dim], dim=1)
        return [p.reshape(-1, *rest) for p in parts]


def rules(shape: Shape) -> Iterator[Rule]:
    """The rule of every tensor of the model, layer by layer."""
    yield Rule((EMBEDDING,), "embedding.word_embeddings.weight")
    for i in range(shape.layers):
        yield from layer_rules(shape, i)
    yield Rule((FINAL_NORM,), "decoder.final_layernorm.weight")
    if not shape.tied:
        yield Rule((LM_HEAD,), "output_layer.weight")


def layer_rules(shape: Shape, layer: int) -> Iterator[Rule]:
    """The rule of every tensor of a layer: norms, weights, biases."""
    for norm in shape.layer.norms:
        hf = f"model.layers.{layer}.{norm.hf}.weight"
        yield Rule((hf,), f"decoder.layers.{layer}.{norm.megatron}")
    for linear in shape.layer.linears:
        yield linear_rule(shape, layer, linear.megatron, ".weight")
    for linear in shape.layer.linears:
        if shape.has_bias(linear):
            yield linear_rule(shape, layer, linear.megatron, ".bias")


def linear_rule(shape: Shape, layer: int, name: str, tensor: str = "") -> Rule:
    """The rule of a linear layer by Megatron's name: of the module, or of one of its tensors."""
    linear = next(linear for linear in shape.layer.linears if linear.megatron == name)
    return Rule(
        tuple(f"model.layers.{layer}.{part}{tensor}" for part in linear.names),
        f"decoder.layers.{layer}.{name}{tensor}",
        interleaved=linear.interleaved,
    )


def local_name(shape: Shape, name: str) -> str:
    """The name in Megatron's local layers of a tensor named as Transformer Engine does."""
    for norm in shape.layer.norms:
        if name.endswith(f".{norm.megatron}"):
            return name.removesuffix(norm.megatron) + norm.megatron_local
    return name


def unfused(
    shape: Shape, read: Callable[[str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """HF names and tensors of a Megatron model; `read` returns a Megatron tensor by name."""
    for rule in rules(shape):
        yield from zip(rule.hf, rule.split(shape, read(rule.megatron)), strict=True)
