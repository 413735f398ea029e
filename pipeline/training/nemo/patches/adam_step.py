"""The numbers of one step of AdamW."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AdamStep:
    """What a step of AdamW (arXiv:1711.05101) has in common for all weights.

    number: of the step, from 1. scale: what gradients are multiplied with, as clipping's factor.
    """

    rate: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    number: int
    scale: float = 1.0
