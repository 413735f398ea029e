"""LoRA beside a frozen layer, with fewer passes over memory than NeMo's modules take.

The adapter's product is added in the memory of the layer's output. Where both see the same input,
the adapter's gradient is added in the memory of the layer's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import LORA_FORWARD


def lora_in_place() -> list[Replacement]:
    return LORA_FORWARD.by(forward=forward_of(LORA_FORWARD.original("forward")))


def forward_of(original: Any) -> Any:
    """LoRALinear.forward; NeMo's own where ranks share a layer or the adapter has dropout."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        adapter = self.adapter
        if parallel_state.get_tensor_model_parallel_world_size() > 1 or adapter.dropout is not None:
            return original(self, x, *args, **kwargs)
        waiting = _Waiting()
        x = _AddWaiting.apply(x, waiting)
        output, bias, seen = self.base_linear_forward(x, *args, **kwargs)
        # A layer with a norm before it returns what the adapter sees, and takes its gradient back.
        shared = (seen.detach(), waiting) if seen is x else (seen, None)
        scale = adapter.alpha / adapter.dim
        a, b = adapter.linear_in.weight, adapter.linear_out.weight
        return _AddAdapter.apply(output, *shared, a, b, scale), bias

    return forward


class _Waiting:
    """An adapter's part of a gradient, as factors, until it can be added to the layer's part."""

    factors: tuple[torch.Tensor, torch.Tensor] | None = None


class _AddWaiting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, waiting: _Waiting) -> torch.Tensor:
        ctx.waiting = waiting
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grads[0].contiguous()
        if factors := ctx.waiting.factors:
            low, a = factors
            _add(grad.view(-1, grad.shape[-1]), low, a.t(), 1.0)
            ctx.waiting.factors = None
        return grad, None


class _AddAdapter(torch.autograd.Function):
    """output + scale * x Aᵀ Bᵀ, in the memory of `output`.

    output: [..., out]. x: [..., in]. a: [rank, in]. b: [out, rank]. waiting: where to leave the
    gradient of x, if given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        x: torch.Tensor,
        waiting: _Waiting | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        # Not marked as changed: autograd forbids that for the outputs of some layers, which are
        # views made in a function. Nothing else reads `output`; had a layer saved it for its
        # backward pass, autograd would report the change.
        total = output.detach()
        _add(total.view(-1, total.shape[-1]), low, b, scale)
        ctx.save_for_backward(rows, low, a, b)
        ctx.scale, ctx.shape, ctx.waiting = scale, x.shape, waiting
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        rows, low, a, b = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_low = (flat @ b).mul_(ctx.scale)
        grad_b = (flat.t() @ low).mul_(ctx.scale)
        grad_a = grad_low.t() @ rows
        grad_x = None
        if ctx.waiting:
            ctx.waiting.factors = grad_low, a
        else:
            grad_x = (grad_low @ a).view(ctx.shape)
        return grad, grad_x, None, grad_a, grad_b, None


def _add(total: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    """total += scale * low bᵀ. total: [rows, width]. low: [rows, rank]. b: [width, rank]."""
    if total.is_cuda and total.dtype == torch.bfloat16:
        from pipeline.training.nemo.patches.triton_kernels import add_low_rank

        add_low_rank(total, low, b, scale)
    else:
        total.addmm_(low, b.t(), alpha=scale)
