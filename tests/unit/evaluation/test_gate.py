"""What the gates refuse: the tuned model, the exported format, the served engine."""

import pytest

from pipeline.config.evaluate import GateConfig
from pipeline.config.schema import load
from pipeline.core.errors import ConfigError
from pipeline.evaluation.gate import drops, refusals, served_refusals
from pipeline.orchestration.compose import compose


@pytest.fixture(scope="module")
def gate() -> GateConfig:
    return load(compose([])).evaluate.gate


def test_good_models_pass(gate: GateConfig) -> None:
    exact = {"base": 0.0, "tuned": 0.93, "fp8": 0.93, "int8_sq": 0.92, "int4_awq": 0.9}
    assert refusals(gate, "full", exact, "fp8") == []
    assert drops(gate, exact, set(exact)) == []


@pytest.mark.parametrize(("method", "refused"), [("adapter", False), ("full", True)])
def test_what_was_trained_decides_the_least_exact_match(
    gate: GateConfig, method: str, refused: bool
) -> None:
    problems = refusals(gate, method, {"base": 0.0, "tuned": 0.85, "fp8": 0.85}, "fp8")
    assert bool(problems) is refused
    if refused:
        assert "85.0%" in problems[0]
        assert "90.0%" in problems[0]


def test_a_format_that_loses_too_much_is_refused_where_it_is_shipped(gate: GateConfig) -> None:
    exact = {"base": 0.0, "tuned": 0.95, "fp8": 0.92, "int8_sq": 0.93, "int4_awq": 0.89}
    (problem,) = refusals(gate, "adapter", exact, "fp8")
    assert problem.startswith("fp8: its exact match is 92.0%, 3.0% worse than the tuned model's")
    assert "choose another format" in problem
    assert refusals(gate, "adapter", exact, "int8_sq") == []
    assert [d.split(":")[0] for d in drops(gate, exact, set(exact))] == ["fp8", "int4_awq"]


def test_a_loss_of_just_what_is_allowed_passes(gate: GateConfig) -> None:
    assert refusals(gate, "adapter", {"tuned": 0.9, "fp8": 0.9 - 0.02}, "fp8") == []


def test_a_setting_overrules_what_a_format_may_lose() -> None:
    gate = load(compose(["evaluate.gate.max_drop.fp8=0.1"])).evaluate.gate
    exact = {"base": 0.0, "tuned": 0.95, "fp8": 0.87, "int8_sq": 0.87}
    assert refusals(gate, "adapter", exact, "fp8") == []
    assert refusals(gate, "adapter", exact, "int8_sq") != []


def test_a_bound_of_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="no weight format 'fp9': did you mean fp8"):
        load(compose(["evaluate.gate.max_drop.fp9=0.1"]))


def test_the_served_engine_must_reach_what_the_tuned_model_must(gate: GateConfig) -> None:
    assert served_refusals(gate, "full", 0.91, 0.93, "hf fp32") == []
    least, drop = served_refusals(gate, "full", 0.867, 0.916, "onnxruntime int8, temperature 0")
    what = "the exact match of the served engine (onnxruntime int8, temperature 0)"
    assert least.startswith(what)
    assert "is 86.7%, and evaluate.gate.min_exact_match.full requires 90.0%" in least
    assert "4.9% worse than the tuned model's" in drop
    assert "evaluate.gate.max_served_drop allows 3.0%" in drop


def test_a_loss_of_the_served_engine_of_just_what_is_allowed_passes(gate: GateConfig) -> None:
    assert served_refusals(gate, "adapter", 0.9 - 0.03, 0.9, "hf fp32") == []
    assert served_refusals(gate, "adapter", 0.95, 0.9, "hf fp32") == []
