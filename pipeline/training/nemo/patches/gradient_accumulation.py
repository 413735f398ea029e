"""Weight gradients of the outer layers, added where their sums are kept.

A full fine-tune sums gradients over the micro-batches of a step in float32, in `main_grad` of each
weight. Transformer Engine's layers add theirs as they multiply. Megatron-Core's embedding and
output layer are left: without Apex each makes a whole gradient of [vocabulary, hidden] a
micro-batch, of which another pass over memory makes the sum.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import layers

from pipeline.core.monkeypatch import Patch


def outer_layers() -> list[Patch]:
    """What to replace in Megatron-Core 0.15 so that both layers add to `main_grad`."""
    return [
        (layers, "F", SimpleNamespace(**{**vars(F), "embedding": embedding})),
        # Apex's extension of that name: its one function, by Transformer Engine.
        (layers, "fused_weight_gradient_mlp_cuda", _WeightGradients),
        (layers, "_grad_accum_fusion_available", True),
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
        # Sorts, so that rows of one token are added in the same order each time.
        total.index_put_((ids.reshape(-1),), rows, accumulate=True)
        return None, None


class _WeightGradients:
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
