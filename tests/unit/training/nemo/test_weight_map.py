"""The weight mapping is one set of rules that goes both ways and loses nothing."""

import dataclasses

import pytest
import torch

from pipeline.models.architecture import Shape
from pipeline.training.nemo.weight_map import (
    linear_rule,
    local_name,
    rules,
    unfused,
)

LLAMA = Shape(
    family="llama",
    layers=2,
    hidden=12,
    ffn=10,
    heads=4,
    kv_heads=2,
    head_dim=3,
    vocab=7,
    max_positions=16,
    rope_theta=10_000.0,
    rope_scaling=None,
    norm_eps=1e-6,
    tied=False,
    qkv_bias=False,
    attention_dropout=0.0,
    initializer_range=0.02,
)
SHAPES = {
    "grouped queries": LLAMA,
    "biases, tied": dataclasses.replace(LLAMA, family="qwen2", qkv_bias=True, tied=True),
    "one key-value head": dataclasses.replace(LLAMA, kv_heads=1),
    "norms of heads, biases of attention": dataclasses.replace(
        LLAMA, family="qwen3", qkv_bias=True, output_bias=True
    ),
    "four norms": dataclasses.replace(LLAMA, family="gemma2", tied=True),
    "six norms": dataclasses.replace(LLAMA, family="gemma3_text", tied=True),
    "fused in both libraries": dataclasses.replace(LLAMA, family="phi3"),
    "layer norms, biases, no gate": dataclasses.replace(
        LLAMA, family="starcoder2", qkv_bias=True, output_bias=True, mlp_bias=True
    ),
    "a key-value head each": dataclasses.replace(LLAMA, kv_heads=4, head_dim=5),
}


def numbered(shape: Shape) -> dict[str, torch.Tensor]:
    """A model whose every number is another one."""
    start, weights = 0, {}
    for name, size in shape.tensors():
        weights[name] = torch.arange(start, start + torch.Size(size).numel()).reshape(size)
        start += weights[name].numel()
    return weights


@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back_every_number_is_where_it_was(name: str) -> None:
    shape = SHAPES[name]
    source = numbered(shape)
    megatron = {r.megatron: r.fuse(shape, [source[name] for name in r.hf]) for r in rules(shape)}
    back = dict(unfused(shape, megatron.__getitem__))
    assert list(back) == [hf for rule in rules(shape) for hf in rule.hf]
    assert back.keys() == source.keys()
    for key, tensor in source.items():
        assert torch.equal(back[key], tensor), key
    assert sum(t.numel() for t in megatron.values()) == shape.parameters


def test_attention_rows_lie_group_by_group() -> None:
    """Two query heads, their key head, their value head; then the next group's."""
    queries, keys, values = torch.arange(10, 14), torch.arange(20, 22), torch.arange(30, 32)
    parts = [heads.repeat_interleave(LLAMA.head_dim) for heads in (queries, keys, values)]
    together = linear_rule(LLAMA, 0, "self_attention.linear_qkv", ".bias").fuse(LLAMA, parts)
    assert together[::3].tolist() == [10, 11, 20, 30, 12, 13, 21, 31]


def test_gate_lies_before_up() -> None:
    rule = linear_rule(LLAMA, 1, "mlp.linear_fc1", ".weight")
    assert rule.hf == ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight")
    together = rule.fuse(LLAMA, [torch.zeros(10, 12), torch.ones(10, 12)])
    assert together[:, 0].tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("layer", [linear.megatron for linear in LLAMA.layer.linears])
def test_an_update_of_low_rank_splits_as_its_weight_does(layer: str) -> None:
    """(B A) split by rows is (B split by rows) A: a fused adapter becomes one for each part."""
    rule = linear_rule(LLAMA, 0, layer, ".weight")
    source = numbered(LLAMA)
    weight = rule.fuse(LLAMA, [source[name] for name in rule.hf])
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(weight.shape[0], 2, generator=generator, dtype=torch.float64)
    a = torch.randn(2, weight.shape[1], generator=generator, dtype=torch.float64)
    whole = rule.split(LLAMA, weight + b @ a)
    by_part = [
        source[name] + part @ a for name, part in zip(rule.hf, rule.split(LLAMA, b), strict=True)
    ]
    for merged, part in zip(whole, by_part, strict=True):
        torch.testing.assert_close(merged, part)


def test_fused_rows_of_phi3_become_groups() -> None:
    """Its checkpoints hold all queries, then all keys, then all values."""
    phi3 = SHAPES["fused in both libraries"]
    rule = linear_rule(phi3, 0, "self_attention.linear_qkv", ".weight")
    assert rule.hf == ("model.layers.0.self_attn.qkv_proj.weight",)
    fused = torch.tensor([10, 11, 12, 13, 20, 21, 30, 31]).repeat_interleave(phi3.head_dim)
    together = rule.fuse(phi3, [fused])
    assert together[::3].tolist() == [10, 11, 20, 30, 12, 13, 21, 31]
    assert torch.equal(rule.split(phi3, together)[0], fused)


def test_local_layers_keep_their_norms_outside() -> None:
    prefix = "decoder.layers.3."
    assert local_name(LLAMA, f"{prefix}self_attention.linear_qkv.layer_norm_weight") == (
        f"{prefix}input_layernorm.weight"
    )
    assert local_name(LLAMA, f"{prefix}mlp.linear_fc1.layer_norm_weight") == (
        f"{prefix}pre_mlp_layernorm.weight"
    )
    assert local_name(LLAMA, "decoder.final_layernorm.weight") == "decoder.final_layernorm.weight"
    gemma2, starcoder2 = SHAPES["four norms"], SHAPES["layer norms, biases, no gate"]
    assert local_name(gemma2, f"{prefix}mlp.linear_fc2.post_layernorm.weight") == (
        f"{prefix}mlp.post_layernorm.weight"
    )
    assert local_name(starcoder2, f"{prefix}mlp.linear_fc1.layer_norm_bias") == (
        f"{prefix}pre_mlp_layernorm.bias"
    )
