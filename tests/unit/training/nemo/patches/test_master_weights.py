"""Float32 weights in two halves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.training.nemo.patches import master_weights
from pipeline.training.nemo.patches.master_weights import (
    _divided,
    _joined,
    _OnePass,
    split,
    whole,
)


@given(arrays(np.int32, st.integers(1, 50), elements=st.integers(-(2**31), 2**31 - 1)))
def test_halves_give_the_weight_to_the_bit(bits: np.ndarray) -> None:
    weight = torch.from_numpy(bits).view(torch.float32)
    assert torch.equal(whole(*split(weight)).view(torch.int32), weight.view(torch.int32))


@given(arrays(np.float32, 20, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_the_upper_half_is_the_weight_rounded_to_the_nearest(values: np.ndarray) -> None:
    weight = torch.from_numpy(values)
    upper, _ = split(weight)
    nearest = weight.bfloat16()
    # Equal but for weights between two, which torch rounds to the even one.
    between = (weight.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(upper[~between], nearest[~between])
    assert ((upper.float() - weight).abs() <= (nearest.float() - weight).abs()).all()


def test_a_bfloat16_weight_has_no_lower_half() -> None:
    weight = torch.tensor([0.0, -1.5, 3.0e38])
    upper, lower = split(weight.bfloat16().float())
    assert torch.equal(upper, weight.bfloat16())
    assert not lower.any()


@pytest.mark.parametrize("piece", [1, 7, 64, 100])
def test_a_checkpoint_holds_whole_weights(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_weights, "_PIECE", piece)
    weight, model_param = torch.randn(64), torch.nn.Parameter(torch.empty(64))
    upper, lower = split(weight)
    megatrons = SimpleNamespace(
        config=SimpleNamespace(use_precision_aware_optimizer=True),
        model_param_group_index_map={model_param: (0, 0)},
        optimizer=SimpleNamespace(param_groups=[{"params": [upper]}]),
    )
    saved = _joined(lambda *_: {"param": lower, "exp_avg": weight / 2})(megatrons, model_param)
    assert torch.equal(saved["param"], weight)

    kept: dict[str, torch.Tensor] = {}
    expected = upper.clone()
    upper.zero_()
    _divided(lambda self, model_param, tensors: kept.update(tensors))(megatrons, model_param, saved)
    assert torch.equal(upper, expected)
    assert torch.equal(kept["param"], lower)
    assert torch.equal(kept["exp_avg"], weight / 2)


def test_a_weight_that_is_not_split_is_saved_as_it_is() -> None:
    """An adapter's, of which the optimizer has a float32 copy."""
    weight, model_param = torch.randn(64), torch.nn.Parameter(torch.empty(64))
    megatrons = SimpleNamespace(
        config=SimpleNamespace(use_precision_aware_optimizer=False),
        model_param_group_index_map={model_param: (0, 0)},
        optimizer=SimpleNamespace(param_groups=[{"params": [weight]}]),
    )
    state = {"param": weight}
    assert _joined(lambda *_: state)(megatrons, model_param)["param"] is weight
    kept: dict[str, torch.Tensor] = {}
    _divided(lambda self, model_param, tensors: kept.update(tensors))(megatrons, model_param, state)
    assert kept["param"] is weight


@pytest.mark.parametrize(("norm", "scale"), [(0.5, 1.0), (4.0, 0.25), (float("inf"), 0.0)])
def test_clipping_is_left_to_the_step(norm: float, scale: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    weight.decoupled_grad = torch.ones(3)  # type: ignore[attr-defined]
    step = _OnePass(None)
    step.clip([weight], 1.0, norm, use_decoupled_grad=True)
    assert step._scale == pytest.approx(scale, abs=1e-6)
    assert torch.equal(weight.decoupled_grad, torch.ones(3))  # type: ignore[attr-defined]


def test_gradients_of_adapters_are_clipped_as_ever() -> None:
    clipped = []
    _OnePass(lambda *given: clipped.append(given)).clip([], 1.0, 4.0)
    assert clipped == [([], 1.0, 4.0)]
