"""Formats are simulated on a GPU as on a CPU, by ModelOpt's quantizers and without a compiler."""

import pytest
import torch
from torch.utils import cpp_extension

from pipeline.optimization.ptq import modelopt


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_rounds_as_a_cpu_does(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a kernel was to be compiled")

    monkeypatch.setattr(cpp_extension, "load", refuse)
    quantization = modelopt().quantization
    e4m3 = quantization.config.QuantizerAttributeConfig(num_bits=(4, 3), axis=None)
    quantizer = quantization.nn.TensorQuantizer(e4m3)
    quantizer.amax = torch.tensor(3.0)
    values = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    on_cpu = quantizer(values)
    on_gpu = quantizer.cuda()(values.cuda())
    assert float(values.abs().max()) > 3
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=0)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_rounded_as_on_a_cpu(
    bits: int, axis: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a kernel was to be compiled")

    monkeypatch.setattr(cpp_extension, "load", refuse)
    quantization = modelopt().quantization
    how = quantization.config.QuantizerAttributeConfig(num_bits=bits, axis=axis)
    quantizer = quantization.nn.TensorQuantizer(how)
    values = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    values[7] = 0
    quantizer.amax = torch.tensor(3.0) if axis is None else values.abs().amax(1, keepdim=True)
    on_cpu = quantizer(values)
    on_gpu = quantizer.cuda()(values.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=0)
