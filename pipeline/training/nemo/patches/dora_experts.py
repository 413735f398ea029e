"""DoRA on a layer whose input has no batch dimension, as those of experts."""

from __future__ import annotations

from typing import Any

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import DORA_EXPERTS


def dora_of_rows() -> list[Replacement]:
    original = DORA_EXPERTS.original("forward")

    def forward(self: Any, x: Any) -> Any:
        output, bias = original(self, x)
        return (output[0] if x.dim() == 2 else output), bias

    return DORA_EXPERTS.by(forward=forward)
