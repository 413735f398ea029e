"""Distributed checkpoints, read by several threads.

torch reads the tensors of a checkpoint one after another: 1.2 GB/s at Llama-3-8B's size, and the
disk waits while each is copied to its place.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner
    from torch.futures import Future

_READERS = 8

Read = Callable[["FileSystemReader", "LoadPlan", "LoadPlanner"], "Future[None]"]


def in_threads(read_data: Read) -> Read:
    """FileSystemReader.read_data with the same work, a part of the tensors in each thread.

    The planner is asked by all of them. torch's and Megatron's keep nothing from one tensor to the
    next but for parameters that are themselves FP8, which nothing here has.
    """

    def read(reader: FileSystemReader, plan: LoadPlan, planner: LoadPlanner) -> Any:
        # Dealt out from the largest on, for parts of like size.
        items = sorted(plan.items, key=lambda item: -item.lengths.numel())
        parts = [replace(plan, items=items[n::_READERS]) for n in range(_READERS)]
        with ThreadPoolExecutor(_READERS) as pool:
            ends = list(pool.map(lambda part: read_data(reader, part, planner), parts))
        return ends[0]

    return read
