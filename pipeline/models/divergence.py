"""How far one model's next-token distributions are from another's, in measures that mean something.

    found = divergence(reference, other)      # logits [positions, vocabulary], both float32

A shift of all logits of a position changes no probability, so logits themselves, or their cosine,
are not compared. Distributions are: the Kullback-Leibler divergence says how many nats a token the
other model loses. How much that is depends on how much the reference knows: a random model's
distributions differ little from one position to the next, a trained model's a lot. So the
divergence is divided by the information in the reference's predictions, that is their mean
divergence from their own average. The quotient, `loss`, is 0 for the same model, and about 1 for
one that knows nothing of the context or is another model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_POSITIONS = 512  # at a time: each has as many float64 numbers as the vocabulary


@dataclass(frozen=True)
class Divergence:
    """Of one model's predictions from a reference's, over some positions.

    kl: mean Kullback-Leibler divergence from the reference, nats a token.
    information: mean divergence of the reference's predictions from their average, nats a token.
    agreement: share of positions with the same likeliest token, each weighted with the margin by
        which the reference prefers it: a position where the reference hardly decides counts little.
    """

    positions: int
    kl: float
    information: float
    agreement: float

    @property
    def loss(self) -> float:
        """The share of the reference's information that is lost; infinite if it has none and the
        other model differs."""
        if self.information > 0:
            return self.kl / self.information
        return math.inf if self.kl > 0 else 0.0


def divergence(reference: torch.Tensor, other: torch.Tensor) -> Divergence:
    """Compare logits [positions, vocabulary]. Logits that are not finite diverge infinitely."""
    import torch

    count = len(reference)
    if not bool(torch.isfinite(other).all()):
        return Divergence(count, math.inf, 1.0, 0.0)
    average = sum(
        (part.double().softmax(-1).sum(0) for part in reference.split(_POSITIONS)),
        start=torch.zeros(reference.shape[-1], dtype=torch.float64),
    ).div(count)
    rare = average.clamp(min=1e-300).log()
    kl = information = same = weight = 0.0
    for ours, theirs in zip(reference.split(_POSITIONS), other.split(_POSITIONS), strict=True):
        log_p, log_q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        p = log_p.exp()
        kl += float((p * (log_p - log_q)).sum())
        information += float((p * (log_p - rare)).sum())
        top = p.topk(2).values
        margin = top[:, 0] - top[:, 1]
        same += float(margin[log_p.argmax(-1) == log_q.argmax(-1)].sum())
        weight += float(margin.sum())
    agreement = same / weight if weight else 1.0
    return Divergence(count, max(0.0, kl / count), information / count, agreement)
