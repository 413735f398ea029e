"""What replaces Megatron-Core's operations on a GPU computes the same."""

import torch

from pipeline.adapters.nemo_session import nemo_session


def test_the_swiglu_kernel_gives_the_gradient_of_torch() -> None:
    from pipeline.adapters.swiglu_kernel import swiglu_back

    for rows, width in ((7, 14336), (3, 1000), (1, 1)):
        y = torch.randn(rows, 2 * width, device="cuda", requires_grad=True)
        grad = torch.randn(rows, width, device="cuda")
        gate, up = y.chunk(2, -1)
        (torch.nn.functional.silu(gate) * up).backward(grad)
        assert y.grad is not None
        torch.testing.assert_close(swiglu_back(grad, y.detach()), y.grad)
        rounded = swiglu_back(grad.bfloat16(), y.detach().bfloat16())
        torch.testing.assert_close(rounded.float(), y.grad, rtol=2e-2, atol=2e-2)


def test_an_output_layer_adds_its_gradient_to_the_sum() -> None:
    with nemo_session():
        from megatron.core.tensor_parallel.layers import (
            linear_with_grad_accumulation_and_async_allreduce as linear,
        )

        from pipeline.adapters.fast_training import fast_training

        x = torch.randn(24, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.nn.Parameter(torch.randn(512, 64, device="cuda", dtype=torch.bfloat16))
        start = torch.randn(512, 64, device="cuda")
        weight.main_grad, weight.grad_added_to_main_grad = start.clone(), False  # type: ignore[attr-defined]
        grad = torch.randn(24, 2, 512, device="cuda", dtype=torch.bfloat16)
        with fast_training():
            linear(x, weight, None, True, False, False).backward(grad)
    expected = start + grad.flatten(0, 1).float().t() @ x.detach().flatten(0, 1).float()
    torch.testing.assert_close(weight.main_grad, expected, rtol=1e-2, atol=1e-2)  # type: ignore[attr-defined]
    assert weight.grad_added_to_main_grad  # type: ignore[attr-defined]
