import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.optimization.fp8_simulation import round_to_fp8


def test_values_go_to_the_nearest_of_e4m3() -> None:
    # Three bits of mantissa: between 16 and 32 every second number, ties to even.
    values = torch.tensor([16.0, 17.0, 18.9, 19.0, -19.1, 2**-9, 2**-10])
    expected = [16, 16, 18, 20, -20, 2**-9, 0]
    assert round_to_fp8(values, torch.tensor(448.0)).tolist() == expected
    assert round_to_fp8(values).tolist() == expected


def test_what_is_larger_than_calibrated_saturates() -> None:
    values = torch.tensor([3.0, -7.0, 1e30], dtype=torch.bfloat16)
    rounded = round_to_fp8(values, torch.tensor(2.0))
    assert rounded.tolist() == [2, -2, 2]
    assert rounded.dtype == torch.bfloat16
    assert round_to_fp8(torch.tensor([500.0, -1e9])).tolist() == [448, -448]


def test_nothing_but_zeros() -> None:
    assert round_to_fp8(torch.zeros(3), torch.tensor(0.0)).tolist() == [0, 0, 0]


@given(st.floats(1e-6, 1e6), st.integers(0, 2**32))
def test_the_error_is_a_sixteenth_at_most(amax: float, seed: int) -> None:
    values = torch.empty(64).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed)) * amax
    error = (round_to_fp8(values, torch.tensor(amax)) - values).abs()
    smallest_normal = amax / 448 * 2**-6
    assert (error <= values.abs().clamp(min=smallest_normal) / 16 * 1.001).all()
