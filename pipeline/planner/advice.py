"""Which settings would make a run fit: single changes first, and those that cost least speed."""

from collections.abc import Iterator

from pipeline.core.hardware import GIB
from pipeline.planner.memory import peak
from pipeline.planner.workload import Workload

SECTION = "finetune"


def fits(work: Workload, memory: float) -> bool:
    return peak(work).total <= memory


def what_fits(work: Workload, memory: float, *, most: int = 2) -> list[str]:
    """Changes, each of which makes the run fit into `memory` bytes a process, with its memory.

    >>> what_fits(work, 80 * GIB)
    ['finetune.micro_batch_size=2 (51.8 GiB)']

    Empty if no change that the planner knows is enough.
    """
    found = []
    for settings, changed in _changes(work):
        need = peak(changed).total
        if need <= memory:
            found.append(f"{settings} ({need / GIB:.1f} GiB)")
        if len(found) == most:
            break
    return found


def _changes(work: Workload) -> Iterator[tuple[str, Workload]]:
    yield from _smaller_batches(work)
    if work.fp8:
        yield f"{SECTION}.precision=bf16", work.but(precision="bf16")
    yield from _recompute(work)
    yield from _spread(work)
    smallest = work.but(micro_batch_size=1)
    if work.settings.method == "sft":
        yield f"{SECTION}=lora", work.but(method="lora")
        yield f"{SECTION}=lora {SECTION}.micro_batch_size=1", smallest.but(method="lora")
    if not work.settings.pack_length:
        for settings, changed in _recompute(smallest):
            yield f"{SECTION}.micro_batch_size=1 {settings}", changed
        for settings, changed in _spread(smallest):
            yield f"{SECTION}.micro_batch_size=1 {settings}", changed


def _smaller_batches(work: Workload) -> Iterator[tuple[str, Workload]]:
    if work.settings.pack_length:
        length = work.settings.pack_length // 2
        while length >= work.rows.longest:
            yield f"{SECTION}.pack_length={length}", work.but(pack_length=length)
            length //= 2
        return
    share = work.settings.global_batch_size // work.data
    for size in range(work.settings.micro_batch_size - 1, 0, -1):
        if share % size == 0:
            yield f"{SECTION}.micro_batch_size={size}", work.but(micro_batch_size=size)


def _recompute(work: Workload) -> Iterator[tuple[str, Workload]]:
    """More activations that are computed again; the more, the slower."""
    kinds = ("none", "selective", "full")
    if work.shape.layers > 1:
        for kind in kinds[kinds.index(work.settings.recompute) + 1 :]:
            yield f"{SECTION}.recompute={kind}", work.but(recompute=kind)


def _spread(work: Workload) -> Iterator[tuple[str, Workload]]:
    """More tensor parallel on the same GPUs, then on more of them; then pipeline parallel."""
    shape, name = work.shape, f"{SECTION}.parallel"
    wholes = (shape.heads, shape.kv_heads, shape.vocab)
    more = () if work.shape.experts else (2, 4, 8)  # refused: see training/settings_checks.py
    sizes = [n for n in more if n > work.parallel.tensor and not any(w % n for w in wholes)]
    for size in sizes:
        changed = work.but(parallel={"tensor": size})
        ranks = size * work.parallel.pipeline * work.parallel.context
        if work.parallel.processes % ranks == 0 and _divides(changed):
            yield f"{name}.tensor={size}", changed
    for size in sizes:
        processes = work.parallel.processes * size // work.parallel.tensor
        changed = work.but(parallel={"tensor": size, "processes": processes})
        yield f"{name}.tensor={size} {name}.processes={processes}", changed
    for size in (2, 4, 8, 16):
        if size > work.parallel.pipeline and shape.layers % size == 0:
            processes = work.parallel.processes * size // work.parallel.pipeline
            changed = work.but(parallel={"pipeline": size, "processes": processes})
            yield f"{name}.pipeline={size} {name}.processes={processes}", changed


def _divides(work: Workload) -> bool:
    rows = 1 if work.settings.pack_length else work.settings.micro_batch_size
    return work.settings.global_batch_size % (rows * work.data) == 0
