"""Activations that are computed again in the backward pass (gradient checkpointing)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.training.nemo.session import has_transformer_engine

if TYPE_CHECKING:
    import torch


def recompute_options(recompute: str, *, experts: bool) -> dict[str, Any]:
    """Fields of a Megatron configuration for finetune.recompute (arXiv:2205.05198).

    selective: the feed-forward part, which keeps most, and attention's scores where they are
    written out. Transformer Engine's fused attention keeps none.
    full: each layer keeps its input alone.
    experts: whether the model has some; Megatron has another name for such a feed-forward part.
    """
    if recompute == "none":
        return {}
    if recompute == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    scores = [] if has_transformer_engine() else ["core_attn"]
    parts = ["mlp", "moe"] if experts else ["mlp"]
    return {"recompute_granularity": "selective", "recompute_modules": [*scores, *parts]}


def let_gradients_in(model: torch.nn.Module) -> None:
    """Let the output of a frozen embedding have a gradient.

    Megatron's checkpointed function has a gradient only if its input has one. Without this the
    adapters that are the first in the model would not be trained, and nothing would say so.
    """
    from megatron.core.models.common.embeddings.language_model_embedding import (
        LanguageModelEmbedding,
    )

    for module in model.modules():
        if isinstance(module, LanguageModelEmbedding):
            module.register_forward_hook(_with_gradient)


def _with_gradient(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    import torch

    return output.requires_grad_() if torch.is_grad_enabled() else output
