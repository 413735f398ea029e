"""Rotary frequencies as transformers computes them, in a Megatron-Core model.

    scaling = frequencies(hf_folder)          # None: those of the configuration are right
    use_frequencies(model, scaling)           # once its Megatron module is built

Megatron-Core has a class for YaRN, and NeMo one for Llama 3.1's kind; the other kinds have none.
All of them are a set of frequencies and a factor on sine and cosine, so that one mechanism serves
every kind. Only Megatron's module in this process has them: NeMo's own description of the model in
`context/` has the unscaled base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from pipeline.models.architecture import Shape


@dataclass(frozen=True)
class Frequencies:
    """usual: [rotated elements / 2]. long: in rows of more tokens than `original`; None: the same.

    factor: on sine and cosine.
    """

    usual: torch.Tensor
    long: torch.Tensor | None
    original: int
    factor: float

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a Megatron configuration from which its attention takes the factor."""
        if self.factor == 1.0:
            return {}
        # Megatron's YaRN: factor = 0.1 * mscale * ln(scaling factor) + 1.
        return {
            "yarn_rotary_scaling_factor": math.e,
            "yarn_mscale": 10 * (self.factor - 1.0),
            "yarn_mscale_all_dim": 0.0,
        }


def frequencies(hf_folder: Path, shape: Shape) -> Frequencies | None:
    """The frequencies of an HF folder whose config.json scales them."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if shape.rope_scaling is None:
        return None
    config = AutoConfig.from_pretrained(hf_folder, trust_remote_code=False)
    compute = ROPE_INIT_FUNCTIONS[shape.rope_scaling.kind]
    usual, factor = compute(config, torch.device("cpu"))
    original = getattr(config, "original_max_position_embeddings", None) or shape.max_positions
    long = None
    if shape.rope_scaling.kind == "longrope":
        long, _ = compute(config, torch.device("cpu"), seq_len=original + 1)
    return Frequencies(usual, long, original, float(factor))


def use_frequencies(model: Any, scaling: Frequencies) -> None:
    """Set the frequencies of a NeMo model whenever its Megatron module is built."""
    configure = model.configure_model

    def configure_and_scale(*args: Any, **kwargs: Any) -> None:
        configure(*args, **kwargs)
        rotary = model.module.rotary_pos_emb
        rotary.inv_freq = scaling.usual.to(rotary.inv_freq.device)
        if scaling.long is not None:
            rotary.__class__ = _LongRotary
            rotary.usual, rotary.long = rotary.inv_freq, scaling.long.to(rotary.inv_freq.device)
            rotary.original = scaling.original

    model.configure_model = configure_and_scale


class _LongRotary(RotaryEmbedding):
    """Takes other frequencies for rows that are longer than the original context."""

    usual: torch.Tensor
    long: torch.Tensor
    original: int

    def forward(self, max_seq_len: int, offset: int = 0, packed_seq: bool = False) -> torch.Tensor:
        self.inv_freq = self.long if max_seq_len > self.original else self.usual
        return super().forward(max_seq_len, offset, packed_seq)
