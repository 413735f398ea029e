"""Distributed checkpoints, written by several threads while tensors come from the GPU.

Megatron-Core 0.15 (strategies/filesystem_async.py) first fetches all tensors to the host, into
pinned memory for the whole model. Then it forks two processes that write. The disk waits for the
first part, and Adam's state of a large model may not fit in the host's memory. On a CPU it copies
every tensor that is a part of another, as the halves of a gated feed-forward part are. Here each
thread fetches or copies a tensor, writes it and releases it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import CHECKPOINT_WRITER, WRITE_RESULTS

if TYPE_CHECKING:
    import torch

WRITERS = 8  # files of a checkpoint from a GPU, and threads that write them


def write_in_threads(results: Any) -> list[Replacement]:
    """Replacements for checkpoints that are saved synchronously, in this process.

    results: the queue from which Megatron's writer reads what was written.
    """
    return [
        *WRITE_RESULTS.by(_results_queue=results),
        *CHECKPOINT_WRITER.by(
            prepare_write_data=_prepared_later(CHECKPOINT_WRITER.original("prepare_write_data")),
            preload_tensors=staticmethod(_not_preloaded),
            write_preloaded_data_multiproc=staticmethod(_write),
        ),
    ]


class _Later:
    """A tensor that is copied when it is written. To Megatron it is one of another device."""

    device = SimpleNamespace(type="later")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.detach()

    def detach(self) -> _Later:
        return self

    def cpu(self) -> torch.Tensor:
        """On the host, with no other numbers in its memory, as torch writes all of that."""
        tensor = self._tensor.cpu()
        is_part = tensor.untyped_storage().size() != tensor.numel() * tensor.itemsize
        return tensor.clone() if is_part else tensor


class _Planner:
    """A planner of torch's whose tensors are copied later."""

    def __init__(self, planner: Any) -> None:
        self._planner = planner

    def resolve_data(self, item: Any) -> Any:
        data = self._planner.resolve_data(item)
        return _Later(data) if hasattr(data, "untyped_storage") else data


def _prepared_later(prepare: Callable[..., None]) -> Callable[..., None]:
    def prepare_write_data(self: Any, plan: Any, planner: Any) -> None:
        prepare(self, plan, _Planner(planner))

    return prepare_write_data


def _not_preloaded(buckets: Sequence[Any], non_blocking: bool = True) -> Sequence[Any]:
    return buckets


def _write(
    transforms: Sequence[Any], use_msc: bool, rank: int, buckets: Sequence[Any], results: Any
) -> None:
    with ThreadPoolExecutor(len(buckets)) as pool:
        results.put(dict(enumerate(pool.map(partial(_write_file, transforms), buckets))))


def _write_file(transforms: Sequence[Any], bucket: Any) -> list[Any]:
    """Write one file; returns what is where in it."""
    from torch.distributed.checkpoint import filesystem

    path, key, (plain, tensors) = bucket
    save = partial(
        filesystem._write_item, serialization_format=filesystem.SerializationFormat.TORCH_SAVE
    )
    with open(path, "wb") as stream:
        found = [save(*transforms, stream, data, item, key) for item, data in plain]
        found += [save(*transforms, stream, data.cpu(), item, key) for item, data in tensors]
        stream.flush()
        os.fsync(stream.fileno())
    return found
