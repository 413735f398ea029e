"""The arithmetic of time against what was measured, and its rules."""

import json

import pytest

from pipeline.core.paths import ROOT
from pipeline.planner import speed
from pipeline.planner.accelerators import KNOWN, NETWORK
from tests.unit.planner.cases import MEASURED, rows, workload

H200 = KNOWN["h200"]


def step(**changes):
    size = changes.pop("size", "8b")
    return speed.step(workload(size, **changes), changes.pop("on", H200), node=8)


@pytest.mark.parametrize("case", MEASURED)
def test_tokens_a_second_are_within_a_tenth_of_the_measured_ones(case: str) -> None:
    changes, _, measured = MEASURED[case]
    one = step(**changes)
    assert one.tokens / one.seconds == pytest.approx(measured, rel=0.1)


def test_llama_8b_has_the_operations_of_the_literature() -> None:
    """4 N a token frozen, 6 N trained, N 7.5 e9 without the embedding; attention 10 % at 4096."""
    for method, passes in (("lora", 4), ("sft", 6)):
        linear, other = speed.operations(workload(method=method))
        products = passes * (6.979e9 + 0.525e9)
        attention = 6 * 32 * 4096 * 4096
        assert linear + other == pytest.approx(products + attention, rel=0.01)


def test_gradients_travel_over_the_network_once_a_machine_is_full() -> None:
    inside, outside = (
        step(method="sft", processes=8),
        step(method="sft", processes=16, global_batch_size=16),
    )
    assert outside.data / inside.data == pytest.approx(
        (15 / 16) / (7 / 8) * H200.link / NETWORK, rel=1e-3
    )
    assert step(method="sft").data == 0


def test_tensor_parallel_over_machines_is_far_slower() -> None:
    eight = step(size="70b", processes=8, tensor=8)
    over = speed.step(workload("70b", processes=8, tensor=8), H200, node=4)
    assert over.tensor > 5 * eight.tensor > 0


def test_a_pipeline_idles_less_with_more_micro_batches() -> None:
    few = step(size="70b", processes=4, pipeline=4)
    many = step(size="70b", processes=4, pipeline=4, global_batch_size=64)
    assert few.pipeline / few.computing == pytest.approx(3 / 8, rel=0.05)
    assert many.pipeline / many.computing == pytest.approx(3 / 64, rel=0.1)


def test_more_data_parallel_ranks_share_a_step() -> None:
    assert step(processes=4).computing == pytest.approx(step().computing / 4)


def test_a_small_model_waits_on_the_host() -> None:
    tiny = step(layers=2, rows=rows(64))
    assert tiny.host_bound
    assert not step().host_bound


def test_an_unknown_card_has_no_time() -> None:
    from dataclasses import replace

    assert speed.step(workload(), replace(H200, bf16=None), node=1) is None


def test_the_rate_says_where_it_comes_from() -> None:
    fp8 = workload(precision="fp8")
    assert "as one H200 reached" in speed.rate_in_words(workload(), H200)
    assert "772 in FP8" in speed.rate_in_words(fp8, H200)
    other = speed.rate_in_words(fp8, KNOWN["b200"])
    assert "the share of the peak that one H200 reached" in other
    assert "HGX B200 data sheet" in other


def test_a_run_is_its_parts() -> None:
    work = workload(rows=rows(4096))
    one = step()
    run = speed.run(
        work, one, steps=100, validate_every=50, checkpoint_every=40, checkpoint_bytes=3e9
    )
    hops = json.loads((ROOT / "bench/results/gpu_hops.json").read_text())["hops"]
    assert run.start == pytest.approx(hops["finetune"]["start_to_first_step"], rel=0.1)  # of 8 B
    assert run.steps == pytest.approx(100 * one.seconds)
    assert run.checkpoints == pytest.approx(3 * 3e9 / speed.WRITING)
    assert run.total == run.start + run.steps + run.validation + run.checkpoints
