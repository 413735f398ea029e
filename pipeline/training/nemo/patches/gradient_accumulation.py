"""Weight gradients of the embedding and the output layer, added directly to their sums.

A full fine-tune sums gradients over the micro-batches of a step in float32, in `main_grad` of each
weight. Transformer Engine's layers add theirs as they multiply. Megatron-Core's embedding and
output layer do not: without Apex each makes a whole gradient of [vocabulary, hidden] for each
micro-batch, and another pass over memory adds it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import EMBEDDING, OUTPUT_LAYER


def fused_weight_gradients() -> list[Replacement]:
    """Replacements with which both layers add to `main_grad`."""
    return [
        *EMBEDDING.by(F=SimpleNamespace(**{**vars(F), "embedding": embedding})),
        *OUTPUT_LAYER.by(
            fused_weight_gradient_mlp_cuda=_WeightGradients, _grad_accum_fusion_available=True
        ),
    ]


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """torch.nn.functional.embedding, whose gradient goes to `weight.main_grad` if that is there.

    ids: any shape. weight: [vocabulary, hidden].
    """
    if torch.is_grad_enabled() and weight.requires_grad and hasattr(weight, "main_grad"):
        return _Embedding.apply(ids, weight)
    return F.embedding(ids, weight)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, None]:
        (ids,) = ctx.saved_tensors
        total = ctx.weight.main_grad
        rows = grads[0].reshape(-1, total.shape[1]).to(total.dtype)
        # It sorts, so that rows of one token are added in the same order each time.
        total.index_put_((ids.reshape(-1),), rows, accumulate=True)
        return None, None


class _WeightGradients:
    """Apex's extension fused_weight_gradient_mlp_cuda, with Transformer Engine's product."""

    @staticmethod
    def wgrad_gemm_accum_fp32(x: torch.Tensor, grad: torch.Tensor, total: torch.Tensor) -> None:
        """total += gradᵀ x. x: [tokens, in]. grad: [tokens, out]. total: [out, in], float32."""
        from transformer_engine.pytorch.cpp_extensions import general_gemm
        from transformer_engine.pytorch.module.base import get_workspace

        general_gemm(
            x,
            grad,
            get_workspace(),
            out_dtype=total.dtype,
            layout="NT",
            out=total,
            accumulate=True,
            grad=True,
        )
