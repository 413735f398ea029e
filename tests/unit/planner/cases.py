"""Workloads at the shapes of Llama 3, as measured on an H200 and as planned."""

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu_training import CASE, CONVERSATION_BATCH, GLOBAL_BATCH, SEQUENCE
from bench.llama_shapes import write
from pipeline.core.paths import ROOT
from pipeline.models.architecture import Shape, read_shape
from pipeline.planner.workload import Rows, Workload
from tests.finetune_settings import finetune_settings

SETTINGS = finetune_settings(
    method="lora", rank=16, dropout=0.0, global_batch_size=8, micro_batch_size=1, pack_length=None,
    precision="bf16", processes=1, tensor=1, pipeline=1, context=1,
)  # fmt: skip


@functools.cache
def shape_of(size: str) -> Shape:
    with tempfile.TemporaryDirectory() as folder:
        return read_shape(write(Path(folder), size))


def rows(length: int = 4096, *, mean: float | None = None) -> Rows:
    return Rows(None, length, mean or length, 0, known=mean is not None)


def workload(size: str = "8b", *, layers: int | None = None, **changes: Any) -> Workload:
    """LoRA of rank 16 on rows of 4096 tokens, one GPU, eight rows a step; with `changes`."""
    shape = shape_of(size)
    given: dict[str, Any] = {
        "shape": changes.pop("shape", replace(shape, layers=layers or shape.layers)),
        "rows": changes.pop("rows", rows()),
        "gpu": changes.pop("gpu", True),
    }
    settings = finetune_settings(SETTINGS, **changes)
    return Workload(settings=settings, **given)


def measured() -> dict[str, tuple[dict[str, Any], float, float]]:
    """What one H200 did, by the name of the case in bench/gpu_training.py: the workload's changes,
    peak GiB of allocated tensors, tokens/s. A later file's figure replaces an earlier one's."""
    found = {}
    for name in (
        "gpu_training_rows",
        "gpu_training_one_row",
        "gpu_training_one_row_other_host",  # the quicker one, for FP8 with one row waits for it
        "gpu_training_lora",
        "gpu_training_sft_b1",
        "gpu_training_sft_l22",
        "gpu_training_sft_l26",
    ):
        results = json.loads((ROOT / f"bench/results/{name}.json").read_text())
        for case, figures in results["cases"].items():
            if "peak_memory_gib" in figures:  # of one GPU, and it did not fail
                speed = figures["tokens_per_second_a_gpu"]
                found[case] = (changes_of(case), figures["peak_memory_gib"], speed)
    return found


def changes_of(case: str) -> dict[str, Any]:
    """The workload of a case of one GPU, as changes of `workload`'s."""
    found = CASE.match(case)
    assert found, case
    size, length, layers = found["size"], found["length"], found["layers"]
    changes: dict[str, Any] = {"method": found["method"], "precision": found["precision"]}
    if length:
        batch = GLOBAL_BATCH * SEQUENCE // int(length)
        changes |= {"rows": rows(int(length)), "global_batch_size": batch}
    if layers:
        changes["layers"] = int(layers)
    if found["kind"] == "pack":
        # The packs of a step are of nearly the same size: the largest of these runs.
        assert int(size) == 16_384
        lengths = {"rows": rows(mean=600), "global_batch_size": CONVERSATION_BATCH}
        return changes | lengths | {"pack_length": 16_320}
    return changes | {"micro_batch_size": int(size)}


MEASURED = measured()
