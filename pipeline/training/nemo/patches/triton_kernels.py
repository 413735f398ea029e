"""Operations that are bound by a GPU's memory, as Triton kernels that read and write once.

    gradient = swiglu_back(gradient_of_output, y)          # as Megatron-Core has it
    query, key, value = rotated(qkv, freqs, freqs, sizes)  # as Transformer Engine has it
    add_low_rank(total, low, b, scale)                     # total += scale * low bᵀ
    adam(grad, weight, mean, square, low_bits, step)       # a weight's step of AdamW

What each replaces, and how long that took, is in docs/benchmarks.md. Needs a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from pipeline.training.nemo.patches.adam_step import AdamStep

# Columns of a program: 16 bytes a thread of bfloat16 in each load.
_BLOCK, _WARPS = 1024, 4
_ROWS, _COLUMNS, _TILE_WARPS = 32, 256, 4  # of a tile of add_low_rank


# Triton reads a kernel's annotations, so kernels have only those that Triton knows.
@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_back(grad_ptr, input_ptr, out_ptr, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)  # rows times columns may be over 2^31
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    first = row * 2 * width + column
    gate = tl.load(input_ptr + first, inside).to(tl.float32)
    up = tl.load(input_ptr + first + width, inside).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + column, inside).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(out_ptr + first, grad * up * sigmoid * (1 + gate * (1 - sigmoid)), inside)
    tl.store(out_ptr + first + width, grad * gate * sigmoid, inside)


def swiglu_back(grad: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient of silu(gate) * up with respect to y, which holds both side by side.

    grad: [rows, width]. y and the result: [rows, 2 * width], of one dtype.
    """
    grad, y = grad.contiguous(), y.contiguous()
    out = torch.empty_like(y)
    rows, width = grad.shape
    with torch.cuda.device_of(y):
        _swiglu_back[(rows, triton.cdiv(width, _BLOCK))](
            grad, y, out, width, BLOCK=_BLOCK, num_warps=_WARPS
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    mixed_ptr, query_ptr, key_ptr, value_ptr, turns_ptr, batch, groups, queries, half,
    HEADS: tl.constexpr, HALF: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """All heads of one token, from `mixed` to query, key and value, or back."""
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    group, place = head // (queries + 2), head % (queries + 2)
    inside = (head < groups * (queries + 2)) & (column < half)
    is_query, is_key, is_value = place < queries, place == queries, place == queries + 1
    turn = turns_ptr + token // batch * 2 * half + column
    cos = tl.where(is_value, 1.0, tl.load(turn, column < half, 0.0))
    sin = tl.where(is_value, 0.0, tl.load(turn + half, column < half, 0.0))
    mixed = mixed_ptr + (token * groups * (queries + 2) + head) * 2 * half + column
    query = query_ptr + (token * groups * queries + group * queries + place) * 2 * half + column
    key = key_ptr + (token * groups + group) * 2 * half + column
    value = value_ptr + (token * groups + group) * 2 * half + column
    is_query, is_key, is_value = is_query & inside, is_key & inside, is_value & inside
    if BACK:
        sin = -sin
        # Each element is one of the three's; the others give zero.
        x = tl.load(query, is_query, 0.0) + tl.load(key, is_key, 0.0)
        x += tl.load(value, is_value, 0.0)
        y = tl.load(query + half, is_query, 0.0) + tl.load(key + half, is_key, 0.0)
        y += tl.load(value + half, is_value, 0.0)
    else:
        x, y = tl.load(mixed, inside), tl.load(mixed + half, inside)
    x, y = x.to(tl.float32), y.to(tl.float32)
    first, second = x * cos - y * sin, y * cos + x * sin
    if BACK:
        tl.store(mixed, first, inside)
        tl.store(mixed + half, second, inside)
    else:
        tl.store(query, first, is_query)
        tl.store(query + half, second, is_query)
        tl.store(key, first, is_key)
        tl.store(key + half, second, is_key)
        tl.store(value, first, is_value)
        tl.store(value + half, second, is_value)


def rotated(
    mixed: torch.Tensor, query_freqs: torch.Tensor, key_freqs: torch.Tensor, sizes: list[int]
) -> tuple[torch.Tensor, ...]:
    """Query and key after rotary embedding, and value (arXiv:2104.09864, halves as in GPT-NeoX).

    mixed: [sequence, batch, groups, (queries + 2) * size], a group's queries, key and value.
    query_freqs, the same as key_freqs: [sequence, 1, 1, size], float32, radians.
    sizes: of a group's queries, key and value, in columns.
    Gives [sequence, batch, heads, size], with as many heads as queries, groups and groups.
    """
    assert query_freqs is key_freqs
    return _Rotated.apply(mixed.contiguous(), _turns(query_freqs), sizes[0] // sizes[1])


@lru_cache(maxsize=2)
def _turns(freqs: torch.Tensor) -> torch.Tensor:
    """[sequence, size]: cosines, then sines.

    Megatron passes the same tensor of angles to all layers, and another one for other tokens.
    """
    half = freqs.float().view(freqs.shape[0], -1).chunk(2, -1)[0]
    return torch.cat((half.cos(), half.sin()), -1)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mixed: torch.Tensor, turns: torch.Tensor, queries: int
    ) -> tuple[torch.Tensor, ...]:
        sequence, batch, groups, width = mixed.shape
        heads = (groups * queries, groups, groups)
        parts = tuple(mixed.new_empty(sequence, batch, n, width // (queries + 2)) for n in heads)
        ctx.save_for_backward(turns)
        ctx.shape = mixed.shape
        _run_rotate(mixed, parts, turns, back=False)
        return parts

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (turns,) = ctx.saved_tensors
        mixed = grads[0].new_empty(ctx.shape)
        _run_rotate(mixed, tuple(g.contiguous() for g in grads), turns, back=True)
        return mixed, None, None


def _run_rotate(
    mixed: torch.Tensor, parts: tuple[torch.Tensor, ...], turns: torch.Tensor, *, back: bool
) -> None:
    sequence, batch, groups, width = mixed.shape
    size = parts[0].shape[-1]
    heads = triton.next_power_of_2(groups * width // size)
    with torch.cuda.device_of(mixed):
        _rotate[(sequence * batch,)](
            mixed, *parts, turns, batch, groups, width // size - 2, size // 2,
            HEADS=heads, HALF=triton.next_power_of_2(size // 2), BACK=back, num_warps=_WARPS,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _add_low_rank(  # type: ignore[no-untyped-def]
    total_ptr, low_ptr, b_ptr, rows, width, rank, scale, b_width, b_rank,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    here, there = tl.arange(0, RANK)[None, :], tl.arange(0, RANK)[:, None]
    low = tl.load(low_ptr + row * rank + here, (row < rows) & (here < rank), 0.0)
    b = tl.load(b_ptr + column * b_width + there * b_rank, (column < width) & (there < rank), 0.0)
    inside = (row < rows) & (column < width)
    total = total_ptr + row * width + column
    tl.store(total, tl.load(total, inside).to(tl.float32) + scale * tl.dot(low, b), inside)


def add_low_rank(total: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    """total += scale * low bᵀ, summed in float32 and rounded once.

    total: [rows, width], contiguous. low: [rows, rank], contiguous. b: [width, rank].
    """
    rows, width = total.shape
    rank = low.shape[1]
    with torch.cuda.device_of(total):
        _add_low_rank[(triton.cdiv(width, _COLUMNS), triton.cdiv(rows, _ROWS))](
            total, low, b, rows, width, rank, scale, *b.stride(),
            ROWS=_ROWS, COLUMNS=_COLUMNS, RANK=max(16, triton.next_power_of_2(rank)),
            num_warps=_TILE_WARPS,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _adam(  # type: ignore[no-untyped-def]
    grad_ptr, weight_ptr, mean_ptr, square_ptr, low_ptr, count,
    rate, beta1, beta2, eps, decay, correction1, correction2, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    grad = tl.load(grad_ptr + at, inside) * scale
    mean = beta1 * tl.load(mean_ptr + at, inside) + (1 - beta1) * grad
    square = beta2 * tl.load(square_ptr + at, inside) + (1 - beta2) * grad * grad
    high = tl.load(weight_ptr + at, inside).to(tl.int32)
    low = tl.load(low_ptr + at, inside).to(tl.int32)
    bits = ((high - (low < 0).to(tl.int32)) << 16) | (low & 0xFFFF)
    weight = bits.to(tl.float32, bitcast=True)
    direction = mean / correction1 / (tl.sqrt_rn(square / correction2) + eps)
    weight -= rate * (direction + decay * weight)
    bits = weight.to(tl.int32, bitcast=True)
    low = (bits << 16) >> 16
    tl.store(weight_ptr + at, ((bits >> 16) + (low < 0).to(tl.int32)).to(tl.int16), inside)
    tl.store(low_ptr + at, low.to(tl.int16), inside)
    tl.store(mean_ptr + at, mean, inside)
    tl.store(square_ptr + at, square, inside)


def adam(
    grad: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    low_bits: torch.Tensor,
    step: AdamStep,
) -> None:
    """A step of AdamW in float32, in place, in one pass over memory.

    All tensors are contiguous and of one size. weight: bfloat16, the upper half of the float32
    weight, rounded. low_bits: int16, its lower half (`master_weights.whole`). grad, mean and
    square: float32, the last two the running means of the gradient and its square.
    """
    count = weight.numel()
    with torch.cuda.device_of(weight):
        _adam[(triton.cdiv(count, _BLOCK),)](
            grad, weight.view(torch.int16), mean, square, low_bits, count,
            step.rate, step.beta1, step.beta2, step.eps, step.decay,
            1 - step.beta1**step.number, 1 - step.beta2**step.number, step.scale,
            BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
