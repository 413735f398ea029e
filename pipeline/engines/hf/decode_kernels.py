"""Triton kernels for steps of one token a row, which read memory once and at its speed.

attended(query, keys, values, step, scale=…, window=…)  # flat_cache.Attention, one query a row
write(key, value, keys, values, places)                 # flat_cache.Write

PyTorch's flash attention gives each row and head to one program: one row leaves most of the GPU
idle, and many rows wait for the longest. Here a row's tokens are shared among programs, and a
second kernel joins their parts. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from pipeline.engines.hf.flat_cache import Step

_PROGRAMS = 256  # about two for each multiprocessor of an H200
_MOST_PARTS = 32
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
def _write(  # type: ignore[no-untyped-def]
    key_ptr, value_ptr, keys_ptr, values_ptr, places_ptr, width,
    key_row, key_head, key_token, value_row, value_head, value_token,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, HEADS_PADDED: tl.constexpr,
):  # fmt: skip
    """All heads of one token."""
    number = tl.program_id(0)
    row, token = (number // width).to(tl.int64), number % width
    place = tl.load(places_ptr + number)
    head, column = tl.arange(0, HEADS_PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    inside = (head < HEADS) & (column < SIZE)
    to = place * HEADS * SIZE + head * SIZE + column
    key = key_ptr + row * key_row + token * key_token + head * key_head + column
    value = value_ptr + row * value_row + token * value_token + head * value_head + column
    tl.store(keys_ptr + to, tl.load(key, inside), inside)
    tl.store(values_ptr + to, tl.load(value, inside), inside)


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """flat_cache.Write, keys and values in one kernel and without a copy of either."""
    rows, heads, width, size = key.shape
    key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (key, value))
    with torch.cuda.device_of(key):
        _write[(rows * width,)](
            key, value, keys, values, places, width,
            *(key.stride(i) for i in (0, 1, 2)), *(value.stride(i) for i in (0, 1, 2)),
            HEADS=heads, SIZE=size, PADDED=triton.next_power_of_2(size),
            HEADS_PADDED=triton.next_power_of_2(heads),
        )  # fmt: skip
