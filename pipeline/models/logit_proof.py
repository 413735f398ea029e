"""Proof that two models compute the same: their predictions on fixed prompts, compared.

Log-probabilities are compared, as a shift of all logits of a position changes no probability.

The prompts are token ids drawn from the whole vocabulary, so that every kind of embedding row,
position and attention span takes part, with any tokenizer. Both models are computed in float32.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError, ProofFailed
from pipeline.models.architecture import Shape
from pipeline.models.divergence import divergence

if TYPE_CHECKING:
    import torch

    Logits = Callable[[Sequence[int]], torch.Tensor]  # token ids → [tokens, vocabulary]

LENGTHS = (16, 64, 160)  # tokens
# Largest difference of a log-probability. Float32 sums in another order differ by 1e-6 to 1e-4, and
# by more where logits are large: SmolLM2-135M's, up to 35, by 0.002 at one position, where the
# first tokens' hidden states are huge. On a GPU Transformer Engine multiplies float32 matrices with
# TF32's 10-bit mantissas, layer after layer.
CPU_TOLERANCE = 1e-3
CPU_SHARE = 1e-4  # of the largest logit, where that is more
GPU_TOLERANCE = 1e-2  # times the largest logit


@dataclass(frozen=True)
class Comparison:
    """How far apart the predictions of two models are, over all positions of the prompts."""

    positions: int
    max_abs_difference: float  # of a log-probability, over every token of the vocabulary
    loss: float  # share of the reference's information that is lost: models/divergence.py
    same_greedy_tokens: int  # positions where both models prefer the same token
    undecided: int  # positions where they do not, and the reference has a tie within the tolerance
    tolerance: float

    @property
    def holds(self) -> bool:
        greedy = self.same_greedy_tokens + self.undecided == self.positions
        return greedy and self.max_abs_difference <= self.tolerance


class ProofChain:
    """The logits of a reference, and how close each conversion of it comes, step by step.

    proof: the figures of every step so far, by name, for the manifest.
    max_abs_difference: the largest of a log-probability, over the steps that had to agree.
    """

    def __init__(
        self, shape: Shape, *, gpu: bool, reference: Logits, name: str = "the source model"
    ) -> None:
        """reference: returns the logits [tokens, vocabulary] of a prompt; it is called here.

        name: of the reference, for errors.

        Raises:
            DataError: the reference's logits are not finite, so nothing can be compared with them.
        """
        self._prompts = prompts(shape.vocab, shape.max_positions)
        self._reference = [reference(prompt) for prompt in self._prompts]
        if not all(bool(logits.isfinite().all()) for logits in self._reference):
            raise DataError(
                f"{name} computes logits that are not finite: a weight is NaN or too "
                "large, or config.json has a wrong number; correct it or download the model again"
            )
        self._gpu = gpu
        self.proof: dict[str, dict[str, Any]] = {}
        self.max_abs_difference = 0.0

    def require(self, step: str, logits: Logits) -> Comparison:
        """Compare a step, which must compute the same.

        Raises:
            ProofFailed: it does not.
        """
        comparison = self._compare(step, logits)
        if not comparison.holds:
            raise _failed(step, comparison, f"at most {comparison.tolerance:.3g} is allowed")
        self.max_abs_difference = max(self.max_abs_difference, comparison.max_abs_difference)
        return comparison

    def require_near(self, step: str, logits: Logits, most_loss: float) -> Comparison:
        """Compare a step that rounds, so that small differences are allowed.

        most_loss: share of the reference's information that it may lose.

        Raises:
            ProofFailed: it loses more.
        """
        comparison = self._compare(step, logits)
        if not comparison.loss <= most_loss:
            raise _failed(step, comparison, f"a loss of at most {most_loss:g} is allowed")
        return comparison

    def _compare(self, step: str, logits: Logits) -> Comparison:
        found = [logits(prompt) for prompt in self._prompts]
        comparison = compare(self._reference, found, gpu=self._gpu)
        self.proof[step] = asdict(comparison)
        return comparison


def _failed(step: str, comparison: Comparison, rule: str) -> ProofFailed:
    return ProofFailed(
        f"{step} does not compute what its source computes: log-probabilities differ by up to "
        f"{comparison.max_abs_difference:.3g}, {comparison.loss:.2g} of what its predictions say "
        f"is lost, and {comparison.same_greedy_tokens} of "
        f"{comparison.positions} greedy tokens are the same; {rule}. Nothing was kept: report it "
        "with the model's config.json"
    )


def prompts(vocab: int, max_positions: int) -> list[list[int]]:
    """Token ids that are the same in every run, for a vocabulary and a context length."""
    draw = random.Random(0)
    return [
        [draw.randrange(vocab) for _ in range(min(length, max_positions))] for length in LENGTHS
    ]


def compare(
    reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor], *, gpu: bool
) -> Comparison:
    """Compare logits [tokens, vocabulary] prompt by prompt. `gpu` chooses the tolerance.

    Logits that are not finite count as infinitely different.
    """
    import torch

    largest = max(float(r.abs().max()) for r in reference)
    tolerance = GPU_TOLERANCE * largest if gpu else max(CPU_TOLERANCE, CPU_SHARE * largest)
    difference, same, undecided, positions = 0.0, 0, 0, 0
    for a, b in zip(reference, other, strict=True):
        finite = bool(torch.isfinite(b).all())
        apart = (a.double().log_softmax(-1) - b.double().log_softmax(-1)).abs().max()
        difference = max(difference, float(apart) if finite else math.inf)
        agree = a.argmax(-1) == b.argmax(-1)
        top = a.topk(2).values
        undecided += int((~agree & (top[:, 0] - top[:, 1] <= tolerance)).sum())
        same += int(agree.sum())
        positions += len(a)
    loss = divergence(torch.cat([*reference]), torch.cat([*other])).loss
    return Comparison(positions, difference, loss, same, undecided, tolerance)
