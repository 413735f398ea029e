"""Experts as config.json describes them: sizes, names of weights, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.models.architecture import Shape, shape_of

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 50,
    "num_experts_per_tok": 2,
}
QWEN2 = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "num_experts": 5,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}


def shape(family: dict[str, Any], **changes: Any) -> Shape:
    return shape_of(Path("config.json"), {**SIZES, **family, **changes})


def test_a_mixtral_has_the_experts_that_its_config_names() -> None:
    found = shape(
        {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
    )
    tensors = dict(found.tensors())
    assert tensors["model.layers.2.block_sparse_moe.experts.3.w2.weight"] == (64, 96)
    assert tensors["model.layers.0.block_sparse_moe.gate.weight"] == (4, 64)
    assert "model.layers.0.block_sparse_moe.experts.4.w2.weight" not in tensors
    linear = set(found.linear_weights())
    assert "model.layers.0.block_sparse_moe.experts.0.w3.weight" in linear
    assert "model.layers.0.block_sparse_moe.gate.weight" not in linear, "the router stays as it is"


def test_some_layers_are_dense() -> None:
    found = shape(QWEN2, mlp_only_layers=[1])
    assert found.experts is not None
    assert found.experts.layers == (True, False, True)
    assert not found.experts.normalized
    tensors = dict(found.tensors())
    assert tensors["model.layers.1.mlp.gate_proj.weight"] == (96, 64)
    assert tensors["model.layers.2.mlp.shared_expert.up_proj.weight"] == (48, 64)
    assert tensors["model.layers.2.mlp.shared_expert_gate.weight"] == (1, 64)
    assert "model.layers.2.mlp.gate_proj.weight" not in tensors
    sparse = shape(QWEN2, decoder_sparse_step=2)
    assert sparse.experts is not None
    assert sparse.experts.layers == (False, True, False)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (QWEN2, {"num_experts": 1}, "num_experts_per_tok=2 is more than num_experts=1"),
        (QWEN2, {"num_experts": None}, "num_experts=None should be a whole number above 0"),
        (QWEN2, {"mlp_only_layers": [3]}, "a list of whole numbers below 3"),
        (QWEN2, {"mlp_only_layers": "all"}, "a list of whole numbers below 3"),
        (QWEN2, {"mlp_only_layers": [0, 1, 2]}, "no layer has experts"),
    ],
)
def test_experts_that_cannot_be_are_refused(
    family: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        shape(family, **changes)


def test_a_known_architecture_is_refused_with_the_limit_and_the_nearest_one() -> None:
    changes = {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
    }
    with pytest.raises(DataError, match=r"transformers' limit.*nearest.*LlamaForCausalLM") as found:
        shape({}, **changes)
    assert "\n" not in str(found.value)
