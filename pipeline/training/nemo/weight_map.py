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
from pipeline.models.families import FAMILIES
from pipeline.models.families.record import Linear, Size

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rule:
    """HF tensors, and the Megatron tensor that holds their rows.

    blocks: of rows in each HF tensor, by their sizes; none where one tensor is the other.
    """

    hf: tuple[str, ...]
    megatron: str
    blocks: tuple[tuple[Size, ...], ...] = ()
    interleaved: bool = False  # rows by attention group, instead of block after block

    def fuse(self, shape: Shape, parts: Iterable[torch.Tensor]) -> torch.Tensor:
        """The Megatron tensor of the HF tensors, [rows, ...] each."""
        import torch

        tensors = list(parts)
        if not self.interleaved:
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        rest = tensors[0].shape[1:]
        grouped = [
            block.reshape(shape.kv_heads, -1, *rest)
            for tensor, sizes in zip(tensors, self.blocks, strict=True)
            for block in tensor.split([shape.size(size) for size in sizes])
        ]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)

    def split(self, shape: Shape, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The HF tensors of a Megatron tensor: of a weight, a bias, a magnitude or a LoRA B."""
        import torch

        if not self.interleaved:
            if len(self.hf) == 1:
                return [tensor]
            return list(tensor.split([shape.rows(sizes) for sizes in self.blocks]))
        rest = tensor.shape[1:]
        rows = [shape.size(size) // shape.kv_heads for sizes in self.blocks for size in sizes]
        grouped = tensor.reshape(shape.kv_heads, -1, *rest).split(rows, dim=1)
        found = iter(block.reshape(-1, *rest) for block in grouped)
        parts = [[next(found) for _ in sizes] for sizes in self.blocks]
        return [blocks[0] if len(blocks) == 1 else torch.cat(blocks) for blocks in parts]


def rules(shape: Shape) -> Iterator[Rule]:
    """The rule of every tensor of the model, layer by layer."""
    yield Rule((EMBEDDING,), "embedding.word_embeddings.weight")
    for i in range(shape.layers):
        yield from layer_rules(shape, i)
    for kind in shape.norm_tensors:
        yield Rule((f"{FINAL_NORM}.{kind}",), f"decoder.final_layernorm.{kind}")
    if not shape.tied:
        yield Rule((LM_HEAD,), "output_layer.weight")


def layer_rules(shape: Shape, layer: int) -> Iterator[Rule]:
    """The rule of every tensor of a layer: norms, weights, biases."""
    for norm in shape.layer_at(layer).norms:
        for kind in shape.norm_tensors:
            hf = f"model.layers.{layer}.{norm.hf}.{kind}"
            yield Rule((hf,), f"decoder.layers.{layer}.{norm.megatron}{kind}")
    for plain in shape.layer_at(layer).plain:
        hf = f"model.layers.{layer}.{plain.hf}"
        yield Rule((hf,), f"decoder.layers.{layer}.{plain.megatron}")
    linears = shape.layer_at(layer).linears
    for linear in linears:
        yield _rule(layer, linear, ".weight")
    for linear in linears:
        if shape.has_bias(linear):
            yield _rule(layer, linear, ".bias")


def linear_rule(shape: Shape, layer: int, name: str, tensor: str = "") -> Rule:
    """The rule of a linear layer by Megatron's name: of the module, or of one of its tensors."""
    linears = shape.layer_at(layer).linears
    return _rule(layer, next(linear for linear in linears if linear.megatron == name), tensor)


def _rule(layer: int, linear: Linear, tensor: str) -> Rule:
    return Rule(
        tuple(f"model.layers.{layer}.{part}{tensor}" for part in linear.names),
        f"decoder.layers.{layer}.{linear.megatron}{tensor}",
        tuple(part.outputs for part in linear.parts),
        interleaved=linear.interleaved,
    )


def local_name(shape: Shape, name: str) -> str:
    """The name in Megatron's local layers of a tensor named as Transformer Engine does."""
    kind = name.replace("layer_norm_", ".").rpartition(".")[2]
    dense = FAMILIES[shape.family].dense
    for norm in (*shape.layer.norms, *(dense.norms if dense else ())):
        if name.endswith(f".{norm.megatron}{kind}"):
            return name.removesuffix(norm.megatron + kind) + norm.megatron_local + kind
    return name


def unfused(
    shape: Shape, read: Callable[[str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """HF names and tensors of a Megatron model; `read` returns a Megatron tensor by name."""
    for rule in rules(shape):
        yield from zip(rule.hf, rule.split(shape, read(rule.megatron)), strict=True)
