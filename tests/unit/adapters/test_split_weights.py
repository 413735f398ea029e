"""Float32 weights in two halves."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.adapters.split_weights import split, whole


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
