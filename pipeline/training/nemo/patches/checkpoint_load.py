"""Distributed checkpoints, read by several threads.

torch reads the tensors of a checkpoint one after another: 1.2 GB/s at Llama-3-8B's size. The disk
waits while each tensor is copied to its place.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import CHECKPOINT_READER

if TYPE_CHECKING:
    from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner
    from torch.futures import Future

_READERS = 8

Read = Callable[["FileSystemReader", "LoadPlan", "LoadPlanner"], "Future[None]"]


def read_in_threads() -> list[Replacement]:
    return CHECKPOINT_READER.by(read_data=_in_threads(CHECKPOINT_READER.original("read_data")))


def _in_threads(read_data: Read) -> Read:
    """FileSystemReader.read_data, with a part of the tensors in each thread.

    All threads call the planner. torch's and Megatron's planners keep no state from one tensor to
    the next, except for parameters that are themselves FP8. No model here has those.
    """

    def read(reader: FileSystemReader, plan: LoadPlan, planner: LoadPlanner) -> Any:
        # Dealt out from the largest to the smallest, so that the parts are of similar size.
        items = sorted(plan.items, key=lambda item: -item.lengths.numel())
        parts = [replace(plan, items=items[n::_READERS]) for n in range(_READERS)]
        with ThreadPoolExecutor(_READERS) as pool:
            ends = list(pool.map(lambda part: read_data(reader, part, planner), parts))
        return ends[0]

    return read
