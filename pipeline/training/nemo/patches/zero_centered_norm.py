"""Norms that multiply by (weight + 1), which Megatron-Core has only with Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import ZERO_CENTERED_NORM


def zero_centered_norms() -> list[Replacement]:
    wrapped = ZERO_CENTERED_NORM.original("__new__")

    def new(cls: type, config: Any, hidden_size: int, eps: float = 1e-5, **options: Any) -> Any:
        if not config.layernorm_zero_centered_gamma:
            return wrapped(cls, config, hidden_size, eps, **options)
        norms = {"RMSNorm": _ZeroCenteredRMSNorm, "LayerNorm": _ZeroCenteredLayerNorm}
        return norms[config.normalization](config, hidden_size, eps)

    return ZERO_CENTERED_NORM.by(__new__=new)


class _ZeroCenteredRMSNorm(MegatronModule):
    """x / rms(x) * (weight + 1), [..., size]."""

    def __init__(self, config: Any, size: int, eps: float) -> None:
        super().__init__(config)
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight + 1, self.eps)


class _ZeroCenteredLayerNorm(MegatronModule):
    """(x - mean(x)) / deviation(x) * (weight + 1) + bias, [..., size]."""

    def __init__(self, config: Any, size: int, eps: float) -> None:
        super().__init__(config)
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.zeros(size))
        self.bias = torch.nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight + 1, self.bias, self.eps)
