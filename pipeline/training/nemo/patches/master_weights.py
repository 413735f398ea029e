"""Float32 weights of a full fine-tune, as bfloat16 weights and their lower 16 bits.

A full fine-tune in bfloat16 needs a float32 copy of each weight, as updates are smaller than the
last bit of a bfloat16 weight. The upper half of that copy is the bfloat16 weight itself, so only
the lower 16 bits are kept beside it (Transformer Engine's FusedAdam, `store_param_remainders`).
This saves two bytes a weight, and the optimizer writes both halves in one pass. Megatron-Core calls
it `use_precision_aware_optimizer`. The results are those of a float32 copy.

Clipping is a factor in the optimizer's one pass (`triton_kernels.adam`), where Megatron scales all
gradients beforehand. Checkpoints hold whole float32 weights, as they do without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.adam_step import AdamStep
from pipeline.training.nemo.patches.records import ADAM_KERNEL, CLIPPING_FACTOR, MASTER_WEIGHTS

_PIECE = 1 << 26  # weights


def whole(weight: torch.Tensor, low_bits: torch.Tensor) -> torch.Tensor:
    """The float32 weights of a bfloat16 tensor and the int16 tensor of their lower bits."""
    low = low_bits.int()
    high = weight.contiguous().view(torch.int16).int() - (low < 0).int()
    return ((high << 16) | (low & 0xFFFF)).view(torch.float32)


def split(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bfloat16 and int16 tensors for float32 weights, so that `whole` gives these to the bit.

    The upper half is rounded to the nearest, a half away from zero.
    """
    bits = weight.contiguous().view(torch.int32)
    low = bits.to(torch.int16)
    high = (bits >> 16) + (low < 0).int()
    return high.to(torch.int16).view(torch.bfloat16), low


def master_weights() -> list[Replacement]:
    """Replacements in Megatron-Core and Transformer Engine while a model is trained."""
    step = _OnePass(CLIPPING_FACTOR.original("clip_grad_by_total_norm_fp32"))
    get, set_ = MASTER_WEIGHTS.names
    return [
        *ADAM_KERNEL.by(multi_tensor_adam_param_remainder=step.update),
        *CLIPPING_FACTOR.by(clip_grad_by_total_norm_fp32=step.clip),
        *MASTER_WEIGHTS.by(
            **{
                get: _joined(MASTER_WEIGHTS.original(get)),
                set_: _divided(MASTER_WEIGHTS.original(set_)),
            }
        ),
    ]


class _OnePass:
    """Clipping and AdamW together. Megatron clips first, then steps each group of weights."""

    def __init__(self, clip: Any) -> None:
        self._clip_others, self._scale = clip, 1.0

    def clip(
        self,
        parameters: list[torch.Tensor],
        max_norm: float,
        total_norm: float,
        use_decoupled_grad: bool = False,
    ) -> None:
        if not use_decoupled_grad:
            self._clip_others(parameters, max_norm, total_norm)
            return
        assert all(p.dtype == torch.bfloat16 for p in parameters)  # the kernel scales no others
        self._scale = min(1.0, max_norm / (total_norm + 1e-6))

    def update(
        self,
        chunk: int,
        overflow: torch.Tensor,
        tensors: list[list[torch.Tensor]],
        rate: float,
        beta1: float,
        beta2: float,
        eps: float,
        number: int,
        decoupled_decay: int,
        bias_correction: int,
        decay: float,
    ) -> None:
        """In place of Transformer Engine's kernel. tensors: gradients, weights, both moments and
        the lower bits, a list of each."""
        from pipeline.training.nemo.patches.triton_kernels import adam

        assert (decoupled_decay, bias_correction) == (1, 1)
        step = AdamStep(rate, beta1, beta2, eps, decay, number, self._scale)
        for grad, weight, mean, square, low_bits in zip(*tensors, strict=True):
            adam(grad, weight, mean, square, low_bits, step)


def _joined(original: Any) -> Any:
    """Returns a weight and its moments for a checkpoint, the weight in float32 on the host."""

    def get(self: Any, model_param: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = original(self, model_param)
        if tensors["param"].dtype == torch.int16:
            upper, low = _upper(self, model_param), tensors["param"]
            tensors["param"] = torch.empty(len(upper), dtype=torch.float32)
            for piece in _pieces(len(upper)):
                tensors["param"][piece] = whole(upper[piece], low[piece])
        return tensors

    return get


def _divided(original: Any) -> Any:
    """Takes a checkpoint's float32 weight and its moments."""

    def set_(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        upper = _upper(self, model_param)
        if self.config.use_precision_aware_optimizer and upper.dtype == torch.bfloat16:
            low = torch.empty_like(upper, dtype=torch.int16)
            for piece in _pieces(len(upper)):
                upper[piece], low[piece] = split(tensors["param"][piece].to(upper.device))
            tensors = {**tensors, "param": low}
        original(self, model_param, tensors)

    return set_


def _pieces(count: int) -> Iterator[slice]:
    """Pieces so small that computing with one takes about a GiB."""
    for start in range(0, count, _PIECE):
        yield slice(start, start + _PIECE)


def _upper(optimizer: Any, model_param: torch.Tensor) -> torch.Tensor:
    """This rank's part of a weight, as the optimizer has it: float32 where it is not split."""
    group, place = optimizer.model_param_group_index_map[model_param]
    part: torch.Tensor = optimizer.optimizer.param_groups[group]["params"][place]
    return part
