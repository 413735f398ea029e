"""Workloads at the shapes of Llama 3, as measured on an H200 and as planned."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.llama_shapes import write
from pipeline.checkpoints import Shape, read_shape
from pipeline.planner.workload import Rows, Workload


@functools.cache
def shape_of(size: str) -> Shape:
    with tempfile.TemporaryDirectory() as folder:
        return read_shape(write(Path(folder), size))


def rows(length: int = 4096, *, mean: float | None = None) -> Rows:
    return Rows(None, length, mean or length, 0, known=mean is not None)


def workload(size: str = "8b", *, layers: int | None = None, **changes: Any) -> Workload:
    """LoRA of rank 16 on rows of 4096 tokens, one GPU, eight rows a step; with `changes`."""
    shape = shape_of(size)
    fields: dict[str, Any] = {
        "shape": replace(shape, layers=layers or shape.layers),
        "method": "lora",
        "rank": 16,
        "dropout": 0.0,
        "rows": rows(),
        "global_batch_size": 8,
        "micro_batch_size": 1,
        "pack_length": 0,
        "precision": "bf16",
        "processes": 1,
        "tensor": 1,
        "pipeline": 1,
        "context": 1,
    }
    return Workload(**fields | changes)


# Conversations of bench/gpu_training.py: 600 tokens in the mean, 64 a step. The packs of a step
# are of nearly the same size, the largest of these runs 15,744 of 16,384 positions.
PACKED: dict[str, Any] = {
    "rows": rows(mean=600),
    "pack_length": 15_744,
    "global_batch_size": 64,
}
# What one H200 did: peak GiB of allocated tensors, tokens/s.
MEASURED: dict[str, tuple[dict[str, Any], float, float]] = {
    "lora-bf16-b1": ({}, 33.7, 15_534),
    "lora-bf16-b4": ({"micro_batch_size": 4}, 87.9, 15_602),
    "lora-fp8-b2": ({"micro_batch_size": 2, "precision": "fp8"}, 66.7, 21_290),
    "lora-fp8-b4": ({"micro_batch_size": 4, "precision": "fp8"}, 104.8, 21_132),
    "sft-bf16-b1-l22": ({"method": "sft", "layers": 22}, 111.9, 15_368),
    "lora-bf16-pack16384": (PACKED, 85.1, 16_552),
    "lora-fp8-pack16384": ({**PACKED, "precision": "fp8"}, 101.9, 22_960),
}
