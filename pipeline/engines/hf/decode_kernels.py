"""Triton kernels for steps of one token a row, which read memory once and at its speed.

attended(query, keys, values, step, scale=…, window=…)  # flat_cache.Attention, one query a row
multiplied(x, weight)                                   # x weightᵀ for few rows
added_norm(x, residual, weight, epsilon)                # residual + x, and the norm of that
write(key, value, keys, values, places)                 # new keys and values into the cache

PyTorch's flash attention gives each row and head to one program: one row leaves most of the GPU
idle, and many rows wait for the longest. Here a row's tokens are shared among programs, and a
second kernel joins their parts (arXiv:2311.01282 calls this split-KV). cuBLAS reads the weights of
a product with one row at three quarters of the memory's speed. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from pipeline.engines.hf.flat_cache import Step

_PROGRAMS = 528  # that fill a GPU: four for each of an H200's multiprocessors
_MOST_PARTS = 64
_LOG2_E = 1.4426950408889634


# Triton reads a kernel's annotations, so kernels have only those that Triton knows.
@triton.jit  # type: ignore[untyped-decorator]
def _attend_part(  # type: ignore[no-untyped-def]
    query_ptr, keys_ptr, values_ptr, starts_ptr, lengths_ptr, found_ptr, sums_ptr, scale, window,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One part of a row's tokens, for the queries that share a head of keys and values."""
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + row)
    first = tl.maximum(length - window, 0)
    size = tl.cdiv(tl.cdiv(length - first, PARTS), BLOCK) * BLOCK  # whole blocks a part
    begin = first + part * size
    end = tl.minimum(begin + size, length)
    member, column = tl.arange(0, GROUP), tl.arange(0, PADDED)
    queries = (row * KV_HEADS + head) * SHARED + member
    inside = (member < SHARED)[:, None] & (column < SIZE)[None, :]
    query = tl.load(query_ptr + queries[:, None] * SIZE + column[None, :], inside, 0.0)
    largest = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    found = tl.zeros([GROUP, PADDED], tl.float32)
    start = tl.load(starts_ptr + row).to(tl.int64)
    for at in range(begin, end, BLOCK):
        token = at + tl.arange(0, BLOCK)
        known = token < end
        place = ((start + token) * KV_HEADS + head) * SIZE
        here = known[:, None] & (column < SIZE)[None, :]
        key = tl.load(keys_ptr + place[:, None] + column[None, :], here, 0.0)
        value = tl.load(values_ptr + place[:, None] + column[None, :], here, 0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where(known[None, :], score, -float("inf"))
        new = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp2(score - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(weight, 1)
        found = found * shrink[:, None] + tl.dot(weight.to(value.dtype), value)
        largest = new
    if PARTS == 1:
        out = found_ptr + queries[:, None] * SIZE + column[None, :]
        tl.store(out, found / total[:, None], inside)
    else:
        at = queries * PARTS + part
        tl.store(found_ptr + at[:, None] * SIZE + column[None, :], found, inside & (begin < end))
        tl.store(sums_ptr + 2 * at, largest, member < SHARED)
        tl.store(sums_ptr + 2 * at + 1, total, member < SHARED)


@triton.jit  # type: ignore[untyped-decorator]
def _join_parts(  # type: ignore[no-untyped-def]
    found_ptr, sums_ptr, out_ptr,
    SIZE: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0)
    part, column = tl.arange(0, PARTS), tl.arange(0, PADDED)
    at = query * PARTS + part
    largest, total = tl.load(sums_ptr + 2 * at), tl.load(sums_ptr + 2 * at + 1)
    share = tl.exp2(largest - tl.max(largest, 0))
    # Parts without a token have no share, and nothing was written for them.
    inside = (total > 0)[:, None] & (column < SIZE)[None, :]
    found = tl.load(found_ptr + at[:, None] * SIZE + column[None, :], inside, 0.0)
    whole = tl.sum(found * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(out_ptr + query * SIZE + column, whole, column < SIZE)


def parts_of(rows: int, kv_heads: int) -> int:
    """Into how many parts a row's tokens are cut."""
    wanted = -(-_PROGRAMS // (rows * kv_heads))
    return min(triton.next_power_of_2(wanted), _MOST_PARTS)


def attended(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """flat_cache.Attention of a step with one token a row."""
    rows, heads, size = query.shape
    kv_heads = keys.shape[1]
    shared, parts = heads // kv_heads, parts_of(rows, kv_heads)
    out = torch.empty_like(query)
    found, sums = out, out
    if parts > 1:
        found = query.new_empty(rows * heads * parts, size, dtype=torch.float32)
        sums = query.new_empty(rows * heads * parts, 2, dtype=torch.float32)
    padded = triton.next_power_of_2(size)
    with torch.cuda.device_of(query):
        _attend_part[(rows, kv_heads, parts)](
            query, keys, values, step.key_starts, step.lengths, found, sums, scale * _LOG2_E,
            window or 2**30, KV_HEADS=kv_heads, SHARED=shared,
            GROUP=max(16, triton.next_power_of_2(shared)), SIZE=size, PADDED=padded, PARTS=parts,
            BLOCK=64 if size <= 128 else 32, num_warps=4, num_stages=3,
        )  # fmt: skip
        if parts > 1:
            _join_parts[(rows * heads,)](
                found, sums, out, SIZE=size, PADDED=padded, PARTS=parts, num_warps=2
            )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, out_ptr, columns, depth,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of the product of ROWS rows, as sums over the depth."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    weights = weight_ptr + column.to(tl.int64)[:, None] * depth
    at = tl.arange(0, DEPTH)
    total = tl.zeros([ROWS, BLOCK, DEPTH], tl.float32)
    for start in range(0, depth, DEPTH):
        here = (start + at) < depth
        weight = tl.load(
            weights + (start + at)[None, :], inside[:, None] & here[None, :], 0.0,
            eviction_policy="evict_first",
        ).to(tl.float32)  # fmt: skip
        row = tl.arange(0, ROWS)[:, None] * depth + (start + at)[None, :]
        x = tl.load(x_ptr + row, here[None, :], 0.0).to(tl.float32)
        total += weight[None, :, :] * x[:, None, :]
    found = tl.sum(total, 2)
    out = out_ptr + tl.arange(0, ROWS)[:, None] * columns + column[None, :]
    tl.store(out, found, inside[None, :])


def multiplied(
    x: torch.Tensor,
    weight: torch.Tensor,
    block: int = 4,
    depth: int = 1024,
    warps: int = 4,
    stages: int = 3,
) -> torch.Tensor:
    """x [rows, depth] times weight [columns, depth] transposed, without a bias; 1, 2 or 4 rows."""
    rows, columns = x.shape[0], weight.shape[0]
    out = x.new_empty(rows, columns)
    with torch.cuda.device_of(x):
        _multiply[(triton.cdiv(columns, block),)](
            x, weight, out, columns, x.shape[1], ROWS=rows, BLOCK=block, DEPTH=depth,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _write(  # type: ignore[no-untyped-def]
    key_ptr, value_ptr, keys_ptr, values_ptr, places_ptr, key_row, key_head, value_row, value_head,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, HEADS_PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    place = tl.load(places_ptr + row)
    head, column = tl.arange(0, HEADS_PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    inside = (head < HEADS) & (column < SIZE)
    to = place * HEADS * SIZE + head * SIZE + column
    key = tl.load(key_ptr + row * key_row + head * key_head + column, inside)
    value = tl.load(value_ptr + row * value_row + head * value_head + column, inside)
    tl.store(keys_ptr + to, key, inside)
    tl.store(values_ptr + to, value, inside)


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """key, value: [rows, heads, 1, size], of which the last dimension is contiguous. keys, values:
    [places, heads, size]."""
    rows, heads, _, size = key.shape
    with torch.cuda.device_of(key):
        _write[(rows,)](
            key, value, keys, values, places, key.stride(0), key.stride(1), value.stride(0),
            value.stride(1), HEADS=heads, SIZE=size, PADDED=triton.next_power_of_2(size),
            HEADS_PADDED=triton.next_power_of_2(heads),
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]
    x_ptr, residual_ptr, weight_ptr, sum_ptr, out_ptr, width, epsilon, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row + column, inside, 0.0).to(tl.float32)
    total = (x + tl.load(residual_ptr + row + column, inside, 0.0).to(tl.float32)).to(
        sum_ptr.dtype.element_ty
    )
    tl.store(sum_ptr + row + column, total, inside)
    whole = total.to(tl.float32)
    factor = tl.rsqrt(tl.sum(whole * whole, 0) / width + epsilon)
    normed = (whole * factor).to(out_ptr.dtype.element_ty)
    weight = tl.load(weight_ptr + column, inside, 0.0)
    tl.store(out_ptr + row + column, normed * weight, inside)


def added_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """residual + x, and its root-mean-square norm as Llama's; both of x's shape."""
    width = x.shape[-1]
    total, out = torch.empty_like(x), torch.empty_like(x)
    with torch.cuda.device_of(x):
        _add_norm[(x.numel() // width,)](
            x, residual, weight, total, out, width, epsilon,
            BLOCK=triton.next_power_of_2(width), num_warps=8,
        )  # fmt: skip
    return total, out
