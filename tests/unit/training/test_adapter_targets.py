"""Names of layers with an adapter, resolved to Megatron-Core's layers."""

import pytest

from pipeline.core.errors import ConfigError
from pipeline.models.families import FAMILIES
from pipeline.training.adapter_targets import short, targets

LAYER = FAMILIES["llama"].layer


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["all-linear"], {"linear_qkv": "q_proj k_proj v_proj", "linear_proj": "o_proj",
                          "linear_fc1": "gate_proj up_proj", "linear_fc2": "down_proj"}),
        (["attention"], {"linear_qkv": "q_proj k_proj v_proj", "linear_proj": "o_proj"}),
        (["mlp"], {"linear_fc1": "gate_proj up_proj", "linear_fc2": "down_proj"}),
        (["v_proj", "q_proj"], {"linear_qkv": "q_proj v_proj"}),
        (["up_proj", "attention"], {"linear_qkv": "q_proj k_proj v_proj", "linear_proj": "o_proj",
                                    "linear_fc1": "up_proj"}),
    ],
)  # fmt: skip
def test_names_and_groups(names: list[str], found: dict[str, str]) -> None:
    resolved = {
        name.rpartition(".")[2]: " ".join(map(short, parts))
        for name, parts in targets(names, LAYER).items()
    }
    assert resolved == found


@pytest.mark.parametrize("name", ["wq", "lm_head", "self_attn.q_proj", "linear_qkv", "q_*"])
def test_a_name_that_matches_nothing_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        targets(["q_proj", name], LAYER)
    said = str(caught.value)
    assert f"target_modules has '{name}', and the model has no linear layer of this name" in said
    assert said.endswith(
        "choose from q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or attention, "
        "mlp, all-linear"
    )


def test_every_family_has_layers_of_both_groups() -> None:
    for family in FAMILIES.values():
        layer = family.layer.of(experts=2)
        assert targets(["attention"], layer)
        assert targets(["mlp"], layer)
