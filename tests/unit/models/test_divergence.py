"""What the measure sees, and what it must not see."""

import math

import pytest
import torch

from pipeline.models.divergence import divergence


def random_logits(spread: float, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return spread * torch.randn(400, 64, generator=draw)


def test_a_shift_that_changes_no_probability_is_no_difference() -> None:
    logits = random_logits(3.0)
    shifted = logits + 50 * torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    cosine = torch.nn.functional.cosine_similarity(logits, shifted).min()
    assert cosine < 0  # what was measured before
    found = divergence(logits, shifted)
    assert found.kl < 1e-9
    assert found.agreement == 1


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0, 12.0])
def test_the_loss_means_the_same_for_a_sharp_and_for_a_flat_model(spread: float) -> None:
    """Noise of a tenth of the logits loses little; another model loses all; whatever the scale."""
    logits = random_logits(spread)
    noisy = divergence(logits, logits + 0.1 * random_logits(spread, seed=1))
    assert 0.005 < noisy.loss < 0.05
    assert noisy.agreement > 0.9
    other = divergence(logits, random_logits(spread, seed=2))
    assert other.loss > 0.9
    assert other.agreement < 0.2


def test_a_position_without_a_decision_counts_little() -> None:
    sure = torch.tensor([[8.0, 0.0, 0.0]]).repeat(9, 1)
    tie = torch.tensor([[1.0, 1.0 + 1e-4, 0.0]])
    reference = torch.cat([sure, tie])
    other = torch.cat([sure, tie[:, [1, 0, 2]]])
    assert divergence(reference, other).agreement > 0.9999
    assert divergence(reference, -reference).agreement < 0.001


def test_what_is_not_finite_diverges_infinitely() -> None:
    logits = random_logits(1.0)
    broken = logits.clone()
    broken[3, 4] = math.nan
    found = divergence(logits, broken)
    assert found.loss == math.inf
    assert found.agreement == 0


def test_the_same_model_loses_nothing() -> None:
    logits = random_logits(1.0)
    found = divergence(logits, logits)
    assert (found.kl, found.loss, found.agreement, found.positions) == (0.0, 0.0, 1.0, 400)
    flat = torch.zeros(5, 7)
    assert divergence(flat, flat).loss == 0
