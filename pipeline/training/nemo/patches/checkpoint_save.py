"""Distributed checkpoints, written by several threads while tensors come from the GPU.

Megatron-Core (0.15, strategies/filesystem_async.py) first fetches all tensors to the host, into
pinned memory that holds the whole model, and then forks two processes that write; the disk waits
for the first, and Adam's state of a large model may not fit in the host. Here each thread fetches a
tensor, writes it and lets it go.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pipeline.core.monkeypatch import Patch

WRITERS = 8  # files of a checkpoint from a GPU, and threads that write them


def written_in_threads(results: Any) -> list[Patch]:
    """Patches for checkpoints that are saved at once, not later and elsewhere.

    results: a queue, on which Megatron's writer looks for what was written.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    writer = filesystem_async.FileSystemWriterAsync
    return [
        # Megatron makes one in a process of its own, seconds to start.
        (filesystem_async, "_results_queue", results),
        (writer, "preload_tensors", staticmethod(_left_where_they_are)),
        (writer, "write_preloaded_data_multiproc", staticmethod(_write)),
    ]


def _left_where_they_are(buckets: Sequence[Any], non_blocking: bool = True) -> Sequence[Any]:
    return buckets


def _write(
    transforms: Sequence[Any], use_msc: bool, rank: int, buckets: Sequence[Any], results: Any
) -> None:
    with ThreadPoolExecutor(len(buckets)) as pool:
        results.put(dict(enumerate(pool.map(partial(_write_file, transforms), buckets))))


def _write_file(transforms: Sequence[Any], bucket: Any) -> list[Any]:
    """Write one file; what lies where in it."""
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
