"""Where each weight of an HF model is in a Megatron-Core model, for both directions.

Megatron keeps query, key and value in one matrix whose rows are interleaved group by group
(g query heads, one key head, one value head, and again), and gate and up projection in one matrix,
gate first. `rules` yields which HF tensors make which Megatron tensor; `Rule.fuse` and `Rule.split`
convert between them. Adapters follow the same rules, as their B matrices have the weights' rows.

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

_LOCAL_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


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


# Megatron linear layer to the HF linear layers in it, below a transformer layer.
LINEAR_LAYERS = {
    "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2": ("mlp.down_proj",),
}


def rules(shape: Shape) -> Iterator[Rule]:
    """The rule of every tensor of the model, layer by layer."""
    yield Rule((EMBEDDING,), "embedding.word_embeddings.weight")
    for i in range(shape.layers):
        yield from layer_rules(shape, i)
    yield Rule((FINAL_NORM,), "decoder.final_layernorm.weight")
    if not shape.tied:
        yield Rule((LM_HEAD,), "output_layer.weight")


def layer_rules(shape: Shape, layer: int) -> Iterator[Rule]:
    hf, megatron = f"model.layers.{layer}.", f"decoder.layers.{layer}."
    for norm, holder in (
        ("input_layernorm", "self_attention.linear_qkv"),
        ("post_attention_layernorm", "mlp.linear_fc1"),
    ):
        yield Rule((f"{hf}{norm}.weight",), f"{megatron}{holder}.layer_norm_weight")
    for name in LINEAR_LAYERS:
        yield linear_rule(layer, name, ".weight")
    if shape.qkv_bias:
        yield linear_rule(layer, "self_attention.linear_qkv", ".bias")


def linear_rule(layer: int, name: str, tensor: str = "") -> Rule:
    """The rule of a layer named in LINEAR_LAYERS: of the module, or of one of its tensors."""
    parts = LINEAR_LAYERS[name]
    return Rule(
        tuple(f"model.layers.{layer}.{part}{tensor}" for part in parts),
        f"decoder.layers.{layer}.{name}{tensor}",
        interleaved=len(parts) == 3,
    )


def local_name(name: str) -> str:
    """The name in Megatron's local layers of a tensor named as Transformer Engine does."""
    for te, local in _LOCAL_NAMES.items():
        if name.endswith(te):
            return name.removesuffix(te) + local
    return name


def unfused(
    shape: Shape, read: Callable[[str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """HF names and tensors of a Megatron model; `read` returns a Megatron tensor by name."""
    for rule in rules(shape):
        yield from zip(rule.hf, rule.split(shape, read(rule.megatron)), strict=True)
