"""Distributed checkpoints, written by several threads while tensors come from the GPU.

Megatron-Core 0.15 (strategies/filesystem_async.py) first fetches all tensors to the host, into
pinned memory for the whole model. Then it forks two processes that write. The disk waits for the
first part, and Adam's state of a large model may not fit in the host's memory. Here each thread
fetches a tensor, writes it and releases it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import CHECKPOINT_WRITER, WRITE_RESULTS

WRITERS = 8  # files of a checkpoint from a GPU, and threads that write them


def write_in_threads(results: Any) -> list[Replacement]:
    """Replacements for checkpoints that are saved synchronously, in this process.

    results: the queue from which Megatron's writer reads what was written.
    """
    return [
        *WRITE_RESULTS.by(_results_queue=results),
        *CHECKPOINT_WRITER.by(
            preload_tensors=staticmethod(_not_preloaded),
            write_preloaded_data_multiproc=staticmethod(_write),
        ),
    ]


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
