"""Training with fewer passes over memory. The results are the same.

    with fast_training():
        trainer.fit(model, data)

Large models spend a third of a step moving activations and gradients, not multiplying. What is
replaced, in Megatron-Core 0.15 and NeMo 2.7, is listed in `fast_training` with its reason. Figures
before and after are in docs/benchmarks.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.models.common.language_module import language_module
from megatron.core.tensor_parallel import layers
from megatron.core.transformer import attention
from nemo.collections.llm.peft.lora import LoRALinear

from pipeline.core.monkeypatch import Patch, replaced
from pipeline.training.nemo.patches.gradient_accumulation import outer_layers
from pipeline.training.nemo.patches.lora_forward import forward_of
from pipeline.training.nemo.patches.master_weights import split_weights
from pipeline.training.nemo.patches.optimizer_checkpoint import streamed_state
from pipeline.training.nemo.patches.packed_rope import packed_rotation
from pipeline.training.nemo.session import has_transformer_engine


def fast_training() -> AbstractContextManager[None]:
    """Replace what is slow while the block runs."""
    frozen = layers.LinearWithFrozenWeight
    patches: list[Patch] = [
        # A gradient of [sequence, 1, vocabulary] would be multiplied vector by vector.
        (frozen, "backward", staticmethod(_flat_backward(frozen.backward))),
        # The adapter's product is added to the layer's in place, not scaled, kept and added.
        (LoRALinear, "forward", forward_of(LoRALinear.forward)),
        # What was trained is on disk by then: nothing is copied to the host.
        (Strategy, "teardown", _teardown),
    ]
    if has_transformer_engine():
        from transformer_engine.pytorch.module.base import TransformerEngineBaseModule as Layer

        from pipeline.training.nemo.patches.triton_kernels import rotated, swiglu_back

        patches += [
            *outer_layers(),
            *split_weights(),
            *streamed_state(),
            *packed_rotation(),
            # Two thirds of the time of the one that torch.compile makes.
            (fused_bias_swiglu, "swiglu_back", swiglu_back),
            # Half of the time of Transformer Engine's.
            (attention, "apply_fused_qkv_rotary_pos_emb", rotated),
            (
                Layer,
                "grad_output_preprocess",
                staticmethod(_rows_alone(Layer.grad_output_preprocess)),
            ),
            # Its loss is right and its gradient is of other tokens; see there.
            (
                language_module,
                "te_parallel_cross_entropy",
                contiguous_gradient(language_module.te_parallel_cross_entropy),
            ),
        ]
    return replaced(patches)


def _flat_backward(original: Any) -> Any:
    """Megatron's frozen linear layer with one matrix product in its backward pass.

    With a micro-batch of one row the gradient that reaches the frozen output layer is
    [sequence, 1, vocabulary] and not contiguous, and Megatron-Core 0.15 multiplies it as one vector
    a position, in a batched product that takes most of a large model's time on a GPU. In two
    dimensions it is one matrix product with the same result.
    """

    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        grad_input, *rest = original(ctx, grad_output.reshape(-1, grad_output.shape[-1]))
        return grad_input.view(*grad_output.shape[:-1], -1), *rest

    return backward


def _rows_alone(original: Any) -> Any:
    """Transformer Engine's preparation of a gradient in FP8, without a transpose nobody reads.

    Only the gradient of a weight is computed from the transpose. Its Linear leaves it out where the
    weight is frozen; its LayerNormLinear (2.9) makes it all the same.
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
    that with more than one row in a micro-batch each token would be weighed with another's mask.
    """

    def run(*arguments: Any) -> torch.Tensor:
        return _ContiguousGradient.apply(loss_of(*arguments))

    return run


def _teardown(self: Any) -> None:
    """Lightning's without a copy of the model and the optimizer to the host, which nobody reads:
    44 s after a full fine-tune of 22 layers of 8 B."""
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
