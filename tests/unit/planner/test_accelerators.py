"""Which rates a GPU has for the planner: those of its own card, or none."""

import pytest

from pipeline.core.hardware import GIB, Gpu
from pipeline.planner.accelerators import KNOWN, NVLINK4, PCIE4, of_gpu


def test_a_card_of_the_list_has_its_rates_and_its_own_memory() -> None:
    card = of_gpu(Gpu("NVIDIA H100 80GB HBM3", 79 * GIB, "9.0", mig=False))
    assert (card.bf16, card.fp8) == (KNOWN["h100"].bf16, KNOWN["h100"].fp8)
    assert (card.link, card.memory) == (NVLINK4, 79 * GIB)


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (Gpu("NVIDIA H200 MIG 1g.18gb", 16 * GIB, "9.0", mig=True), "a part of NVIDIA H200"),
        (Gpu("NVIDIA H200", 16 * GIB, "9.0", mig=True), "a part of NVIDIA H200"),
        (Gpu("NVIDIA H100 PCIe", 80 * GIB, "9.0", mig=False), "has NVIDIA H100 80GB HBM3"),
        (Gpu("NVIDIA H100 NVL", 94 * GIB, "9.0", mig=False), "has NVIDIA H100 80GB HBM3"),
    ],
)
def test_a_part_of_a_card_or_another_form_of_it_has_a_size_and_no_rate(gpu: Gpu, said: str) -> None:
    found = of_gpu(gpu)
    assert (found.bf16, found.link, found.memory) == (None, PCIE4, gpu.memory_bytes)
    assert found.fp8 is not None, "it has FP8, of a rate that is not known"
    assert said in found.source
    assert "not in the planner's list" in found.source


def test_an_unknown_card_has_a_size_and_no_rate() -> None:
    found = of_gpu(Gpu("NVIDIA Made Up", 100 * GIB, "8.6", mig=False))
    assert (found.bf16, found.fp8, found.source) == (None, None, "not in the planner's list")
