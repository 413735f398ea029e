"""What the proof lets pass and what it refuses."""

import math

import pytest
import torch

from pipeline.core.errors import DataError, ProofFailed
from pipeline.models.logit_proof import CPU_TOLERANCE, ProofChain, compare, prompts
from tests.unit.training.nemo.test_weight_map import LLAMA

CLEAR = [torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])]  # every position prefers one token


def shifted(by: float, column: int = 0) -> list[torch.Tensor]:
    moved = CLEAR[0].clone()
    moved[0, column] += by
    return [moved]


def test_equal_logits_hold() -> None:
    comparison = compare(CLEAR, CLEAR, gpu=False)
    assert comparison.holds
    assert (comparison.positions, comparison.same_greedy_tokens) == (2, 2)
    assert comparison.max_abs_difference == 0.0
    assert comparison.loss == 0


def test_the_largest_difference_counts() -> None:
    assert compare(CLEAR, shifted(CPU_TOLERANCE * 0.9), gpu=False).holds
    assert not compare(CLEAR, shifted(CPU_TOLERANCE * 1.5), gpu=False).holds


def test_large_logits_may_differ_by_a_share_of_the_largest() -> None:
    large = [CLEAR[0] * 20]  # the largest is 40
    for by, holds in ((0.0039, True), (0.005, False)):
        moved = large[0].clone()
        moved[1, 2] += by
        assert compare(large, [moved], gpu=False).holds is holds


def test_a_gpu_is_allowed_a_share_of_the_largest_logit() -> None:
    assert compare(CLEAR, shifted(0.019), gpu=True).holds
    assert not compare(CLEAR, shifted(0.03), gpu=True).holds


def test_a_shift_of_all_logits_of_a_position_changes_nothing() -> None:
    moved = [CLEAR[0] + torch.tensor([[100.0], [-7.0]])]
    comparison = compare(CLEAR, moved, gpu=False)
    assert comparison.holds
    assert comparison.loss < 1e-9


def test_another_greedy_token_is_refused_unless_the_reference_has_a_tie() -> None:
    changed = compare(CLEAR, shifted(1.5), gpu=False)
    assert (changed.same_greedy_tokens, changed.undecided) == (1, 0)
    tie = [torch.tensor([[1.0, 1.0 + 1e-5]])]
    other = [torch.tensor([[1.0 + 2e-5, 1.0]])]
    undecided = compare(tie, other, gpu=False)
    assert (undecided.same_greedy_tokens, undecided.undecided) == (0, 1)
    assert undecided.holds


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_never_hold(bad: float) -> None:
    comparison = compare(CLEAR, shifted(bad), gpu=False)
    assert not comparison.holds
    assert comparison.max_abs_difference == math.inf
    assert comparison.loss == math.inf


def test_prompts_are_the_same_every_time_and_fit_the_model() -> None:
    assert prompts(7, 16) == prompts(7, 16)
    assert [len(p) for p in prompts(7, 16)] == [16, 16, 16]
    assert [len(p) for p in prompts(1000, 4096)] == [16, 64, 160]
    assert {token for p in prompts(7, 512) for token in p} == set(range(7))


def logits(ids: list[int], noise: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(ids))
    sharp = 10 * torch.randn(len(ids), LLAMA.vocab, generator=generator)
    return sharp + noise * torch.randn(len(ids), LLAMA.vocab, generator=generator)


def test_a_chain_keeps_the_figures_of_every_step() -> None:
    chain = ProofChain(LLAMA, gpu=False, reference=logits)
    chain.require("same", logits)
    chain.require("nearly", lambda ids: logits(ids, 1e-5))
    chain.require_near("rounded", lambda ids: logits(ids, 1e-2), 0.01)
    assert list(chain.proof) == ["same", "nearly", "rounded"]
    assert chain.proof["same"]["max_abs_difference"] == 0.0
    assert (
        0
        < chain.max_abs_difference
        < CPU_TOLERANCE
        < (chain.proof["rounded"]["max_abs_difference"])
    )


def test_a_step_that_differs_is_refused_by_name() -> None:
    chain = ProofChain(LLAMA, gpu=False, reference=logits)
    said = r"^folded does not compute .* at most 0\.00\d+ is allowed"
    with pytest.raises(ProofFailed, match=said):
        chain.require("folded", lambda ids: logits(ids, 1.0))
    with pytest.raises(
        ProofFailed, match=r"^written does not compute .* a loss of at most 0\.01 is allowed"
    ):
        chain.require_near("written", lambda ids: -logits(ids), 0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_source_whose_logits_are_not_finite_is_the_models_fault(bad: float) -> None:
    with pytest.raises(
        DataError, match=r"^/models/x computes logits that are not finite: a weight"
    ):
        ProofChain(LLAMA, gpu=False, reference=lambda ids: logits(ids).fill_(bad), name="/models/x")
