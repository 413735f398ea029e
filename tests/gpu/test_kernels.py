"""What replaces Megatron-Core's and Transformer Engine's operations on a GPU computes the same."""

import pytest
import torch

from pipeline.training.nemo.session import nemo_session


def test_the_swiglu_kernel_gives_the_gradient_of_torch() -> None:
    from pipeline.training.nemo.patches.triton_kernels import swiglu_back

    for rows, width in ((7, 14336), (3, 1000), (1, 1)):
        y = torch.randn(rows, 2 * width, device="cuda", requires_grad=True)
        grad = torch.randn(rows, width, device="cuda")
        gate, up = y.chunk(2, -1)
        (torch.nn.functional.silu(gate) * up).backward(grad)
        assert y.grad is not None
        torch.testing.assert_close(swiglu_back(grad, y.detach()), y.grad)
        rounded = swiglu_back(grad.bfloat16(), y.detach().bfloat16())
        torch.testing.assert_close(rounded.float(), y.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("batch", "groups", "queries", "size"),
    [(2, 8, 4, 128), (1, 4, 1, 64), (3, 2, 7, 96), (4, 1, 1, 16)],
)
def test_rotation_is_transformer_engines(batch: int, groups: int, queries: int, size: int) -> None:
    from transformer_engine.pytorch.attention.rope import apply_fused_qkv_rotary_pos_emb

    from pipeline.training.nemo.patches.triton_kernels import rotated

    sequence, sizes = 4096, [queries * size, size, size]
    frequency = 500_000.0 ** -(torch.arange(0, size, 2, device="cuda") / size)
    angles = torch.arange(sequence, device="cuda")[:, None] * frequency
    freqs = torch.cat((angles, angles), -1).view(sequence, 1, 1, size)
    mixed = torch.randn(sequence, batch, groups, sum(sizes), device="cuda", dtype=torch.bfloat16)
    found = []
    for rotate in (rotated, apply_fused_qkv_rotary_pos_emb):
        x = mixed.clone().requires_grad_()
        parts = rotate(x, freqs, freqs, sizes)
        draw = torch.Generator("cuda").manual_seed(0)
        grads = [torch.randn(p.shape, generator=draw, device="cuda").to(p) for p in parts]
        torch.autograd.backward(parts, grads)
        found.append([*parts, x.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("rows", "width", "rank"), [(8192, 4096, 16), (130, 300, 8), (64, 64, 40)])
def test_a_low_rank_product_is_added_as_torch_does(rows: int, width: int, rank: int) -> None:
    from pipeline.training.nemo.patches.triton_kernels import add_low_rank

    total, low = (torch.randn(rows, n, device="cuda", dtype=torch.bfloat16) for n in (width, rank))
    b = torch.randn(width, rank, device="cuda", dtype=torch.bfloat16)
    for factor in (b, b.t().contiguous().t()):
        ours = total.clone()
        add_low_rank(ours, low, factor, 0.5)
        exact = total.float() + 0.5 * (low.double() @ factor.double().t()).float()
        torch.testing.assert_close(ours, exact.bfloat16())


def test_packed_rows_are_turned_as_transformer_engine_does() -> None:
    from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

    from pipeline.training.nemo.patches.packed_rope import angles_of
    from pipeline.training.nemo.patches.triton_kernels import rotated

    groups, queries, size = 2, 4, 64
    boundaries = torch.tensor([0, 100, 101, 400, 512], dtype=torch.int32, device="cuda")
    freqs = torch.rand(299, 1, 1, size // 2, device="cuda").repeat(1, 1, 1, 2) * 100
    sizes = [queries * size, size, size]
    mixed = torch.randn(512, 1, groups, sum(sizes), device="cuda", dtype=torch.bfloat16)
    angles = angles_of(freqs, boundaries, 512)
    query, key, value = rotated(mixed, angles, angles, sizes)
    parts = mixed.squeeze(1).split(sizes, -1)
    for ours, part in ((query, parts[0]), (key, parts[1])):
        theirs = apply_rotary_pos_emb(
            part.reshape(512, -1, size),
            freqs,
            tensor_format="thd",
            fused=True,
            cu_seqlens=boundaries,
        )
        torch.testing.assert_close(ours.squeeze(1), theirs)
    assert torch.equal(value.squeeze(1), parts[2])


def test_a_step_of_adam_is_transformer_engines_and_torchs() -> None:
    import transformer_engine.pytorch  # noqa: F401  # loads what the extension is linked to
    import transformer_engine_torch as engine

    from pipeline.training.nemo.patches.adam_step import AdamStep
    from pipeline.training.nemo.patches.master_weights import split, whole
    from pipeline.training.nemo.patches.triton_kernels import adam

    start = torch.randn(100_001, device="cuda")
    exact = torch.nn.Parameter(start.double())
    torchs = torch.optim.AdamW([exact], 1e-2, (0.9, 0.95), weight_decay=0.1)
    moments = [torch.zeros_like(start) for _ in range(4)]
    ours, theirs = [[*split(start)] for _ in range(2)]
    overflow = torch.zeros(1, dtype=torch.int, device="cuda")
    for number in range(1, 6):
        grad = torch.randn_like(start)
        exact.grad = grad.double() * 0.5
        torchs.step()
        step = AdamStep(1e-2, 0.9, 0.95, 1e-8, 0.1, number, scale=0.5)
        adam(grad, ours[0], moments[0], moments[1], ours[1], step)
        lists = [[t] for t in (grad * 0.5, theirs[0], *moments[2:], theirs[1])]
        engine.multi_tensor_adam_param_remainder(
            2048 * 32, overflow, lists, 1e-2, 0.9, 0.95, 1e-8, number, 1, 1, 0.1
        )
    torch.testing.assert_close(whole(*ours), exact.detach().float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole(*ours), whole(*theirs), rtol=1e-5, atol=1e-6)
    for mine, other in zip(moments[:2], moments[2:], strict=True):
        torch.testing.assert_close(mine, other)


def test_an_output_layer_adds_its_gradient_to_the_sum() -> None:
    with nemo_session():
        from megatron.core.tensor_parallel.layers import (
            linear_with_grad_accumulation_and_async_allreduce as linear,
        )

        from pipeline.training.nemo.patches.performance import fast_training

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
