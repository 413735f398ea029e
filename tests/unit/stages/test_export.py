from dataclasses import replace

import pytest

from pipeline.core.errors import ConfigError, ProofFailed
from pipeline.optimization.formats import FORMATS
from pipeline.optimization.settings_checks import check_exclude, check_splits
from pipeline.stages.export import _prove
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


@pytest.mark.parametrize(
    ("name", "cosine", "error"),
    [
        (LINEAR_NAME, 0.99, 0.05),  # turned
        (LINEAR_NAME, 1.0, 0.5),  # of the right direction and the wrong size
        (LINEAR_NAME, float("nan"), float("nan")),
        (NORM, 0.999, 0.001),  # copied tensors must be copies
    ],
)
def test_weights_out_of_bounds_fail(name: str, cosine: float, error: float) -> None:
    with pytest.raises(ProofFailed, match=name):
        _prove("qnemo", {name: {"cosine": cosine, "error": error, "scale": 1.0}}, "fp8", ())


@pytest.mark.parametrize(
    ("name", "scale", "exclude"),
    [
        (LINEAR_NAME, 1.2, ()),  # within what AWQ may round, and wrong
        (LINEAR_NAME, 1.01, ("up_proj",)),  # left out, and so a copy
    ],
)
def test_a_factor_between_the_weights_fails(
    name: str, scale: float, exclude: tuple[str, ...]
) -> None:
    figures = {"cosine": 1.0, "error": abs(scale - 1), "scale": scale}
    with pytest.raises(ProofFailed, match=f"{scale:.4f} times the source"):
        _prove("qnemo", {name: figures}, "int4_awq", exclude)


def test_a_numbered_layer_is_left_out_without_pipeline_stages_alone() -> None:
    check_exclude(("lm_head", "layers.0."), 1)
    check_exclude(("lm_head", "o_proj"), 2)
    with pytest.raises(ConfigError, match=r"pipeline_parallel=2: set it to 1"):
        check_exclude(("lm_head", "layers.0."), 2)


def test_the_proof_names_the_worst() -> None:
    table = {
        NORM: {"cosine": 1.0, "error": 0.0, "scale": 1.0},
        LINEAR_NAME: {"cosine": 0.9996, "error": 0.027, "scale": 1.0},
    }
    proof = _prove("hf", table, "fp8", ())
    assert (proof["smallest_cosine"], proof["largest_error"]) == (0.9996, 0.027)
    assert proof["by_tensor"] == table


def test_bounds_widen_with_fewer_bits() -> None:
    errors = [FORMATS[name].bounds.error for name in ("none", "fp8", "nvfp4", "int4_awq")]
    assert errors == sorted(set(errors))
