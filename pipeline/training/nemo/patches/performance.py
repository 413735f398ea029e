"""Training with fewer passes over memory. The results are the same.

    with fast_training():
        trainer.fit(model, data)

Large models spend a third of a step moving activations and gradients, not multiplying. The reasons
are in records.py; figures before and after are in docs/benchmarks.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from pipeline.core.monkeypatch import Replacement, replaced
from pipeline.training.nemo.patches import records
from pipeline.training.nemo.patches.gradient_accumulation import fused_weight_gradients
from pipeline.training.nemo.patches.lora_forward import lora_in_place
from pipeline.training.nemo.patches.master_weights import master_weights
from pipeline.training.nemo.patches.optimizer_checkpoint import streamed_optimizer_state
from pipeline.training.nemo.patches.packed_rope import packed_rope
from pipeline.training.nemo.session import has_transformer_engine


def fast_training() -> AbstractContextManager[None]:
    """Replace slow code while the block runs."""
    backward = records.FROZEN_LINEAR.original("backward")
    replacements = [
        *records.FROZEN_LINEAR.by(backward=staticmethod(_flat_backward(backward))),
        *lora_in_place(),
        *records.TEARDOWN.by(teardown=_teardown),
    ]
    if has_transformer_engine():
        replacements += [
            *fused_weight_gradients(),
            *master_weights(),
            *streamed_optimizer_state(),
            *packed_rope(),
            *_kernels(),
        ]
    return replaced(replacements)


def _kernels() -> list[Replacement]:
    from pipeline.training.nemo.patches.triton_kernels import rotated, swiglu_back

    preprocess = records.FP8_GRADIENTS.original("grad_output_preprocess")
    loss_of = records.CROSS_ENTROPY.original("te_parallel_cross_entropy")
    return [
        *records.SWIGLU.by(swiglu_back=swiglu_back),
        *records.ROTARY_EMBEDDING.by(apply_fused_qkv_rotary_pos_emb=rotated),
        *records.FP8_GRADIENTS.by(grad_output_preprocess=staticmethod(_rows_alone(preprocess))),
        *records.CROSS_ENTROPY.by(te_parallel_cross_entropy=contiguous_gradient(loss_of)),
    ]


def _flat_backward(original: Any) -> Any:
    """Megatron's frozen linear layer with one matrix product in its backward pass.

    With a micro-batch of one row the gradient that reaches the frozen output layer is
    [sequence, 1, vocabulary] and not contiguous. Megatron-Core 0.15 multiplies it as one vector for
    each position, in a batched product that takes most of a large model's time on a GPU. In two
    dimensions it is one matrix product with the same result.
    """

    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        grad_input, *rest = original(ctx, grad_output.reshape(-1, grad_output.shape[-1]))
        return grad_input.view(*grad_output.shape[:-1], grad_input.shape[-1]), *rest

    return backward


def _rows_alone(original: Any) -> Any:
    """Transformer Engine's preparation of a gradient in FP8, without an unused transpose.

    Only the gradient of a weight is computed from the transpose. Linear leaves it out where the
    weight is frozen; LayerNormLinear (2.9) does not.
    """

    def preprocess(ctx: Any, grad: torch.Tensor, row_parallel: bool, quantizer: Any) -> Any:
        if quantizer is not None and not ctx.requires_wgrad and not ctx.use_bias:
            quantizer.set_usage(columnwise=False)
        return original(ctx, grad, row_parallel, quantizer)

    return preprocess


def contiguous_gradient(loss_of: Any) -> Any:
    """The function, with a gradient laid out in memory as Transformer Engine reads it.

    The backward pass of its fused cross-entropy (2.9, triton/cross_entropy.py) takes the tokens'
    gradients one after another from memory, whatever their strides. Megatron's come transposed, so
    that with more than one row in a micro-batch each token is weighed with another token's mask.
    """

    def run(*arguments: Any) -> torch.Tensor:
        return _ContiguousGradient.apply(loss_of(*arguments))

    return run


def _teardown(self: Any) -> None:
    """Lightning's, without the unused copy of the model and the optimizer to the host.

    The copy took 44 s after a full fine-tune of 22 layers of 8 B.
    """
    self.precision_plugin.teardown()
    self.accelerator.teardown()
    self.checkpoint_io.teardown()


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].contiguous()
