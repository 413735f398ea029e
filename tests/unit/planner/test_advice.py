"""What would make a run fit: every answer is checked by the arithmetic itself."""

import pytest

from pipeline.core.hardware import GIB
from pipeline.planner.accelerators import KNOWN
from pipeline.planner.advice import fits, what_fits
from pipeline.planner.layouts import possible, quickest
from pipeline.planner.memory import peak
from tests.unit.planner.cases import rows, workload

H100, H200, L40S = (KNOWN[name].memory for name in ("h100", "h200", "l40s"))


@pytest.mark.parametrize(
    ("changes", "memory", "first"),
    [
        ({"micro_batch_size": 8}, H200, "finetune.micro_batch_size=4 (89.5 GiB)"),
        ({"micro_batch_size": 4}, H100, "finetune.micro_batch_size=2 (53.4 GiB)"),
        ({"pack_length": 16_384}, H100, "finetune.pack_length=8192 (53.4 GiB)"),
        ({"precision": "fp8", "rows": rows(4096)}, L40S, "finetune.precision=bf16 (35.3 GiB)"),
        ({"processes": 8, "size": "70b"}, H200, "finetune.parallel.tensor=2 (117.5 GiB)"),
        ({"size": "70b"}, H200, "finetune.parallel.tensor=2 finetune.parallel.processes=2"),
        ({"method": "sft"}, 60 * GIB, "finetune.parallel.tensor=4 finetune.parallel.processes=4"),
    ],
)
def test_the_first_answer_is_the_cheapest_change(changes, memory: float, first: str) -> None:
    work = workload(changes.pop("size", "8b"), **changes)
    assert not fits(work, memory)
    ways = what_fits(work, memory)
    assert 1 <= len(ways) <= 2
    assert ways[0].startswith(first)


def test_activations_that_are_computed_again_are_offered_where_they_are_enough() -> None:
    """A row that is too long for one GPU, in the smallest micro-batch."""
    long = workload(rows=rows(32_768))
    need = peak(long).total
    assert not fits(long, H100)
    ways = what_fits(long, H100)
    assert ways[0].startswith("finetune.recompute=selective (")
    assert ways[1].startswith("finetune.recompute=full (")
    selective, full = (peak(long.but(recompute=kind)) for kind in ("selective", "full"))
    assert full.total < selective.total < H100 < need
    # Selective keeps what attention needs; full, the input of each layer and one layer's rest.
    assert 0.2 < selective.activations / peak(long).activations < 0.4
    assert full.activations < 0.15 * peak(long).activations
    assert "finetune.recompute" not in " ".join(what_fits(workload("8b", layers=1), GIB, most=99))


def test_lora_is_offered_where_one_gpu_cannot_train_every_weight() -> None:
    ways = what_fits(workload(method="sft"), 40 * GIB, most=20)
    assert any(way.startswith("finetune=lora ") for way in ways)


def test_nothing_is_offered_where_nothing_helps() -> None:
    assert what_fits(workload("405b"), 4 * GIB) == []


def test_a_smaller_batch_still_divides_the_step() -> None:
    ways = what_fits(workload(micro_batch_size=9, global_batch_size=18), 80 * GIB, most=1)
    assert ways[0].startswith("finetune.micro_batch_size=3 ")


def test_layouts_obey_heads_layers_and_the_batch() -> None:
    for layout in possible(workload("405b", processes=64, global_batch_size=16)):
        assert layout.parallel.tensor <= 8  # key-value heads
        assert 126 % layout.parallel.pipeline == 0
        assert 16 % layout.data == 0


def test_the_quickest_layout_fits_and_beats_the_others() -> None:
    on = KNOWN["h200"]
    work = workload("70b", processes=8, global_batch_size=64)
    best, seconds = quickest(work, on, node=8) or (None, 0)
    assert best is not None
    assert fits(best, on.memory)
    assert not fits(work, on.memory)
    assert 0 < seconds < 25
    assert quickest(workload("405b"), on, node=8) is None
