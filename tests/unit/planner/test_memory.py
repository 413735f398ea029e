"""The arithmetic of memory against what was measured, and its rules."""

import json

import pytest

from pipeline.core.hardware import GIB
from pipeline.core.paths import ROOT
from pipeline.models.architecture import read_shape
from pipeline.planner.memory import CPU_PROCESS, bytes_a_trained_parameter, peak
from pipeline.planner.workload import trained_parameters
from tests.unit.planner.cases import MEASURED, rows, workload


@pytest.mark.parametrize("case", MEASURED)
def test_the_peak_is_within_a_tenth_of_the_measured_one(case: str) -> None:
    changes, gib, _ = MEASURED[case]
    assert peak(workload(**changes)).tensors / GIB == pytest.approx(gib, rel=0.1)


def test_a_pack_filled_to_the_brim_bounds_what_was_measured() -> None:
    bound = peak(workload(pack_length=16_384)).tensors / GIB
    measured = MEASURED["lora-bf16-pack16384"][1]
    assert measured < bound < 1.1 * measured


def test_a_row_longer_than_a_pack_counts() -> None:
    long = workload(pack_length=1024, rows=rows(8192))
    assert long.micro_tokens == 8192
    assert peak(long).total == peak(workload(pack_length=8192, rows=rows(8192))).total


def test_the_demo_on_a_cpu() -> None:
    """32 rows of at most 137 tokens, rank 64, in float32."""
    chain = json.loads((ROOT / "bench/results/cpu_chain.json").read_text())
    demo = workload(
        rank=64, rows=rows(136), global_batch_size=32, micro_batch_size=32, gpu=False,
        shape=read_shape(ROOT / "data/base_model"),
    )  # fmt: skip
    measured = chain["stages"]["finetune"]["peak_memory_bytes"]
    assert peak(demo).total == pytest.approx(measured, rel=0.1)
    assert peak(demo).overhead == CPU_PROCESS


def test_tensor_parallel_divides_weights_and_most_of_a_layer() -> None:
    one, two = peak(workload("70b")), peak(workload("70b", tensor=2, processes=2))
    assert two.weights == pytest.approx(one.weights / 2, rel=0.01)
    # An adapter reads its layer's gathered input, which every rank holds whole.
    assert one.activations / 2 < two.activations < one.activations


def test_of_a_trained_model_tensor_parallel_divides_all_of_a_layer() -> None:
    one = peak(workload("70b", method="sft"))
    two = peak(workload("70b", method="sft", tensor=2, processes=2))
    assert two.activations == pytest.approx(one.activations / 2, rel=0.01)


def test_data_parallel_ranks_share_the_optimizer_and_nothing_else() -> None:
    one, eight = peak(workload(method="sft")), peak(workload(method="sft", processes=8))
    assert eight.optimizer == pytest.approx(one.optimizer / 8)
    assert (eight.weights, eight.gradients) == (one.weights, one.gradients)


def test_megatrons_bytes_a_parameter() -> None:
    """16 on one rank, 6 + 10 / ranks on several: Megatron-Core's distributed optimizer keeps 12
    bytes, with whole float32 weights."""
    for ranks in (1, 4):
        memory = peak(workload(method="sft", processes=ranks))
        held = memory.weights + memory.gradients + memory.optimizer
        assert held / workload().shape.parameters == pytest.approx(6 + 10 / ranks, rel=1e-3)


def test_modules_that_are_trained_whole_are_counted() -> None:
    plain, saved = (workload(modules_to_save=names) for names in ((), ("embed_tokens", "lm_head")))
    tables = 2 * plain.shape.vocab * plain.shape.hidden
    assert trained_parameters(saved) - trained_parameters(plain) == tables
    gradient, optimizer = bytes_a_trained_parameter(plain)
    more, less = peak(saved), peak(plain)
    assert more.gradients - less.gradients == pytest.approx(gradient * tables)
    assert more.optimizer - less.optimizer == pytest.approx(optimizer * tables)
    assert more.weights == less.weights


def test_context_parallel_divides_tokens() -> None:
    one, two = peak(workload()), peak(workload(context=2, processes=2))
    assert two.activations == pytest.approx(one.activations / 2)
    assert two.logits == pytest.approx(one.logits / 2)


def test_the_first_pipeline_stage_keeps_as_many_micro_batches_as_there_are_stages() -> None:
    one = peak(workload("70b", global_batch_size=32))
    four = peak(workload("70b", global_batch_size=32, pipeline=4, processes=4))
    assert four.activations == pytest.approx(one.activations, rel=0.01)
    assert four.weights < one.weights / 3.5
    few = peak(workload("70b", global_batch_size=2, pipeline=4, processes=4))
    assert few.activations == pytest.approx(one.activations / 2, rel=0.02)


def test_the_last_pipeline_stage_has_the_logits() -> None:
    small = workload(pipeline=2, processes=2, layers=2, global_batch_size=1)
    assert peak(small).logits == peak(workload(layers=2)).logits


def test_what_was_not_measured_costs_more_never_less() -> None:
    plain = peak(workload()).total
    assert peak(workload(dropout=0.1)).total > plain
    assert peak(workload(method="dora")).total > plain
    sft = workload(method="sft", layers=8, micro_batch_size=4)
    assert peak(sft.but(precision="fp8")).activations < peak(sft).activations
