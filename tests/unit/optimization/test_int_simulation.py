"""Integer formats in torch operations are what ModelOpt computes on a CPU."""

import pytest
import torch

from pipeline.optimization.int_simulation import round_to_int


def test_values_go_to_the_nearest_integer_of_the_format() -> None:
    values = torch.tensor([0.5, 1.5, -2.4, 7.6, -9.0])
    assert round_to_int(values, torch.tensor(7.0), 4).tolist() == [0, 2, -2, 7, -7]
    wide = round_to_int(values, torch.tensor(7.0), 4, narrow_range=False)
    assert wide.tolist() == [0, 2, -2, 7, -8]
    assert round_to_int(values.abs(), torch.tensor(15.0), 4, True).tolist() == [0, 2, 2, 8, 9]


def test_an_axis_without_values_stays_zero() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, -0.5]], dtype=torch.bfloat16)
    found = round_to_int(values, torch.tensor([[0.0], [1.0]]), 8)
    assert found.dtype == torch.bfloat16
    assert found[0].tolist() == [0, 0]
    assert found[1].tolist() == pytest.approx([1.0, -0.504], abs=2e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", [None, 0])
def test_it_is_what_modelopt_computes(bits: int, axis: int | None) -> None:
    from pipeline.optimization.ptq import modelopt

    quantization = modelopt().quantization
    how = quantization.config.QuantizerAttributeConfig(num_bits=bits, axis=axis)
    quantizer = quantization.nn.TensorQuantizer(how)
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    values[3] = 0
    amax = torch.tensor(2.0) if axis is None else values.abs().amax(1, keepdim=True)
    quantizer.amax = amax
    narrow = quantizer.narrow_range
    ours = round_to_int(values, amax, bits, narrow_range=narrow)
    torch.testing.assert_close(ours, quantizer(values), rtol=0, atol=0)
