"""The fastest layout among those that fit: tensor-, pipeline- and context-parallel sizes."""

from collections.abc import Iterator

from pipeline.planner import speed
from pipeline.planner.accelerators import Accelerator
from pipeline.planner.advice import fits
from pipeline.planner.workload import Workload


def possible(work: Workload) -> Iterator[Workload]:
    """Every layout of the same GPUs that the model's sizes and the batch allow."""
    shape, processes = work.shape, work.parallel.processes
    divisors = [n for n in range(1, processes + 1) if processes % n == 0]
    for tensor in divisors:
        if any(whole % tensor for whole in (shape.heads, shape.kv_heads, shape.vocab)):
            continue
        if shape.experts and tensor > 1:  # refused: see training/settings_checks.py
            continue
        for pipeline in divisors:
            for context in [1] if work.settings.pack_length else divisors:
                ranks = tensor * pipeline * context
                sizes = {"tensor": tensor, "pipeline": pipeline, "context": context}
                changed = work.but(parallel=sizes)
                rows = 1 if work.settings.pack_length else work.settings.micro_batch_size
                if (
                    processes % ranks == 0
                    and shape.layers % pipeline == 0
                    and work.settings.global_batch_size % (rows * changed.data) == 0
                ):
                    yield changed


def quickest(work: Workload, on: Accelerator, *, node: int) -> tuple[Workload, float] | None:
    """The fastest layout that fits, and its seconds per step; None if none fits."""
    found: tuple[Workload, float] | None = None
    for layout in possible(work):
        step = speed.step(layout, on, node=node)
        if step and fits(layout, on.memory) and (found is None or step.seconds < found[1]):
            found = layout, step.seconds
    return found
