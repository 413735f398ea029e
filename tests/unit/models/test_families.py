"""Every record of the table, and what a family is asked before a stage runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.models.architecture import shape_of
from pipeline.models.families import FAMILIES, check_stage, family_of
from pipeline.models.families.llama import LLAMA
from pipeline.models.families.record import Family
from tests.unit.stages.test_quantize import LLAMA as SHAPE


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_tensors_of_a_layer_have_one_place_in_each_library(family: Family) -> None:
    layer = family.layer
    parts = [part for linear in layer.linears for part in linear.parts]
    assert len({part.hf for part in parts}) == len(parts)
    assert len({linear.megatron for linear in layer.linears}) == len(layer.linears)
    joined = [part.hf for _, _, parts in layer.qnemo_linears() for part in parts]
    assert joined == [part.hf for part in parts]
    norms = {norm.hf for norm in layer.norms}
    assert {linear.after for linear in layer.linears} - {None} <= norms


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_an_architecture_is_of_one_family(family: Family) -> None:
    for name in family.architectures:
        assert family_of(["Unknown", name]) is family
    assert family_of(["Unknown"]) is None


def test_biases_follow_the_shape() -> None:
    biases = {
        qkv_bias: [n for n, _ in replace(SHAPE, qkv_bias=qkv_bias).layer_tensors() if "bias" in n]
        for qkv_bias in (False, True)
    }
    assert biases[False] == []
    assert biases[True] == [f"self_attn.{letter}_proj.bias" for letter in "qkv"]


def test_a_stage_that_a_family_cannot_go_through_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_stage("llama", "import", "export")
    closed = LLAMA.named("closed", "Closed", "ClosedForCausalLM", refused={"export": "use hf"})
    monkeypatch.setitem(FAMILIES._records, "closed", closed)
    check_stage("closed", "import")
    with pytest.raises(DataError, match="stage=export does not take Closed models: use hf"):
        check_stage("closed", "import", "export")


# What config.json must have; transformers has a default for everything else.
REQUIRED = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
    "num_attention_heads": 4, "vocab_size": 320, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_what_config_json_leaves_out_is_what_transformers_takes(family: Family) -> None:
    """transformers leaves its defaults out when it writes config.json."""
    from transformers import AutoConfig

    given = {**REQUIRED, "num_key_value_heads": 2}
    if routing := family.routing:
        sizes = filter(None, (routing.size, routing.shared_size))
        given |= {routing.count: 4, "num_experts_per_tok": 2, **dict.fromkeys(sizes, 8)}
    if family.key_value_heads_optional or family.keys.kv_heads_default:
        del given["num_key_value_heads"]
    if (kv_heads := family.keys.kv_heads_default) and kv_heads > 4:
        given["num_attention_heads"] = kv_heads
    config = AutoConfig.for_model(family.model_type, **given)
    names = {"architectures": list(family.architectures), "model_type": family.model_type}
    shape = shape_of(Path("config.json"), {**names, **given})

    theirs = {
        "kv_heads": config.num_key_value_heads,
        "norm_eps": getattr(config, family.keys.norm_eps),
        "tied": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
        "initializer_range": config.initializer_range,
        "activation": getattr(config, family.keys.activation),
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // shape.heads,
        "rotary_share": getattr(config, "partial_rotary_factor", 1.0),
        "attention_cap": getattr(config, "attn_logit_softcapping", None),
        "logit_cap": getattr(config, "final_logit_softcapping", None),
        "window_rope_theta": getattr(config, "rope_local_base_freq", None),
    }
    assert {name: getattr(shape, name) for name in theirs} == theirs
    scalar = getattr(config, "query_pre_attn_scalar", None)
    assert shape.attention_scale == (None if scalar is None else scalar**-0.5)
    kinds = getattr(config, "layer_types", None)
    size = getattr(config, "sliding_window", None)
    windowed = [kind == "sliding_attention" for kind in kinds] if kinds else [size is not None] * 8
    found = shape.window.layers if shape.window else (False,) * 8
    assert list(found) == windowed
