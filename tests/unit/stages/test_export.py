from dataclasses import replace

import pytest

from pipeline.core.errors import ConfigError, ProofFailed
from pipeline.optimization.settings_checks import check_exclude, check_splits
from pipeline.stages.export import _overruled, _prove
from tests.unit.stages.test_quantize import LLAMA


@pytest.mark.parametrize(
    ("format", "tensor", "pipeline", "reason"),
    [
        ("fp8", 3, 1, "tensor_parallel=3 does not divide the model's 4 key-value heads"),
        ("fp8", 8, 1, "tensor_parallel=8 does not divide the model's 4 key-value heads"),
        ("fp8", 1, 3, "pipeline_parallel=3 does not divide the model's 4 layers"),
        ("int4_awq", 4, 1, "leaves 64 columns of the attention output to a rank"),
        ("nvfp4", 4, 1, "leaves 24 columns of the FFN to a rank, and nvfp4 needs a multiple of 16"),
    ],
)
def test_impossible_splits_are_refused(
    format: str, tensor: int, pipeline: int, reason: str
) -> None:
    shape = replace(LLAMA, ffn=96) if format == "nvfp4" else LLAMA
    with pytest.raises(ConfigError, match=reason):
        check_splits(shape, format, tensor, pipeline)


@pytest.mark.parametrize("format", ["none", "fp8", "int8_sq", "nvfp4"])
def test_possible_splits_pass(format: str) -> None:
    check_splits(LLAMA, format, 4, 4)


def test_awq_with_a_vocabulary_that_modelopt_would_fill_up_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocabulary of 2049"):
        check_splits(replace(LLAMA, vocab=2049), "w4a8_awq", 1, 1)


NORM, LINEAR_NAME = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
LINEAR = frozenset({LINEAR_NAME})


@pytest.mark.parametrize("excess", [0.05, float("inf"), float("nan")])
def test_weights_that_are_off_beyond_rounding_fail(excess: float) -> None:
    figures = {"error": 0.06, "scale": 1.0, "rounding": 0.027, "excess": excess}
    (wrong,) = _prove("qnemo", {LINEAR_NAME: figures}, "fp8", (), LINEAR)[1]
    assert wrong.startswith(f"qnemo: {LINEAR_NAME} unpacks to weights that are")
    assert wrong.endswith("off beyond what rounding costs (2.7%), and 2.0% is allowed")


@pytest.mark.parametrize(
    ("name", "error", "scale", "exclude"),
    [
        (NORM, 0.01, 1.0, ()),
        (NORM, 0.001, 1.01, ()),
        (LINEAR_NAME, 0.01, 1.01, ("up_proj",)),  # left out, and so a copy
        (NORM, float("nan"), float("nan"), ()),
    ],
)
def test_copies_that_are_none_fail(
    name: str, error: float, scale: float, exclude: tuple[str, ...]
) -> None:
    figures = {"error": error, "scale": scale}
    (wrong,) = _prove("qnemo", {name: figures}, "int4_awq", exclude, LINEAR)[1]
    assert wrong.startswith(f"qnemo: {name} should be a copy, and is")


def test_a_numbered_layer_is_left_out_without_pipeline_stages_alone() -> None:
    check_exclude(("lm_head", "layers.0."), 1)
    check_exclude(("lm_head", "o_proj"), 2)
    with pytest.raises(ConfigError, match=r"pipeline_parallel=2: set it to 1"):
        check_exclude(("lm_head", "layers.0."), 2)


def test_the_proof_names_the_worst() -> None:
    table = {
        NORM: {"cosine": 1.0, "error": 0.0, "scale": 1.0},
        LINEAR_NAME: {"error": 0.027, "scale": 1.0, "rounding": 0.027, "excess": 0.004},
    }
    proof, wrong = _prove("hf", table, "fp8", (), LINEAR)
    assert (proof["largest_error"], proof["largest_excess"]) == (0.027, 0.004)
    assert proof["by_tensor"] == table
    assert wrong == []


def test_what_must_be_quantized_is_and_nothing_else() -> None:
    copied, rounded = ({"error": 0.0, "scale": 1.0}, {"error": 0.02, "scale": 1, "rounding": 0.02,
                                                      "excess": 0.0})  # fmt: skip
    for figures, exclude, said in (
        (copied, (), "is not quantized, and must be"),
        (rounded, ("up_proj",), "is quantized, and must not be"),
    ):
        assert said in _prove("hf", {LINEAR_NAME: figures}, "fp8", exclude, LINEAR)[1][0]


def test_a_reason_overrules_a_refusal_and_stands_in_the_manifest() -> None:
    assert _overruled([], None) == {}
    with pytest.raises(
        ProofFailed, match=r"hf: x is off \(and 1 more\): .*export\.overrule=REASON"
    ):
        _overruled(["hf: x is off", "hf: y is off"], None)
    accepted = _overruled(["hf: x is off"], "a test of vLLM")
    assert accepted == {"overruled": {"reason": "a test of vLLM", "refusal": "hf: x is off"}}
