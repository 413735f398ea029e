"""Distributed checkpoints, read by several threads, and to their place alone.

torch reads the tensors of a checkpoint one after another: 1.2 GB/s at Llama-3-8B's size. The disk
waits while each tensor is copied to its place. Megatron-Core then joins the halves of each gated
feed-forward part into a new tensor, together half of a model, though both were read to their place
in the one that they are halves of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.core.hardware import threads_for
from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import CHECKPOINT_READER, JOINED_HALVES

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner
    from torch.futures import Future

_READERS = 8

Read = Callable[["FileSystemReader", "LoadPlan", "LoadPlanner"], "Future[None]"]


def read_in_threads() -> list[Replacement]:
    """Replacements for reading checkpoints."""
    factory = JOINED_HALVES.original("apply_swiglu_sharded_factory")
    return [
        *CHECKPOINT_READER.by(read_data=_in_threads(CHECKPOINT_READER.original("read_data"))),
        *JOINED_HALVES.by(apply_swiglu_sharded_factory=_joined_in_place(factory)),
    ]


def _joined_in_place(make: Callable[..., Any]) -> Callable[..., Any]:
    """Megatron's factory of a tensor's halves, which joins those that lie together as they lie."""

    def apply_swiglu_sharded_factory(*arguments: Any, **named: Any) -> Any:
        factory = make(*arguments, **named)
        join = factory.merge_fn

        def merge(parts: Sequence[torch.Tensor]) -> torch.Tensor:
            whole = joined_view(parts)
            return join(parts) if whole is None else whole

        factory.merge_fn = merge
        return factory

    return apply_swiglu_sharded_factory


def joined_view(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Tensors one behind the other in one memory, as one along their first dimension, [rows, ...].

    None: they lie elsewhere.
    """
    first = parts[0]
    at, rows = first.data_ptr(), 0
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        alike = part.shape[1:] == first.shape[1:] and part.dtype == first.dtype
        if not (same and alike and part.is_contiguous() and part.data_ptr() == at):
            return None
        at += part.numel() * part.itemsize
        rows += part.shape[0]
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _in_threads(read_data: Read) -> Read:
    """FileSystemReader.read_data, with a part of the tensors in each thread.

    All threads call the planner. torch's and Megatron's planners keep no state from one tensor to
    the next, except for parameters that are themselves FP8. No model here has those.
    """

    def read(reader: FileSystemReader, plan: LoadPlan, planner: LoadPlanner) -> Any:
        # Dealt out from the largest to the smallest, so that the parts are of similar size.
        items = sorted(plan.items, key=lambda item: -item.lengths.numel())
        readers = threads_for(_READERS)
        parts = [replace(plan, items=items[n::readers]) for n in range(readers)]
        with ThreadPoolExecutor(readers) as pool:
            ends = list(pool.map(lambda part: read_data(reader, part, planner), parts))
        return ends[0]

    return read
