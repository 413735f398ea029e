"""A model with biases and an odd vocabulary, split over ranks here and read back whole."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.optimization.exported_reader import QnemoWeights
from tests.unit.stages.test_quantize import LLAMA

SHAPE = replace(LLAMA, layers=4, hidden=16, ffn=12, heads=4, kv_heads=2, head_dim=4, vocab=31)
QWEN = replace(SHAPE, family="qwen2", qkv_bias=True)
Tensors = Mapping[str, torch.Tensor]


def part(tensor: torch.Tensor, dimension: int, rank: int, tp: int) -> torch.Tensor:
    return tensor.chunk(tp, dimension)[rank].contiguous()


def fused(source: Tensors, layer: str, kind: str, rank: int, tp: int) -> torch.Tensor:
    whole = (source[f"{layer}self_attn.{letter}_proj.{kind}"] for letter in "qkv")
    return torch.cat([part(tensor, 0, rank, tp) for tensor in whole])


def write_qnemo(folder: Path, source: Tensors, tp: int, pp: int) -> None:
    """After TensorRT-LLM's description of a checkpoint (architecture/checkpoint.md)."""
    config = {
        "mapping": {"tp_size": tp, "pp_size": pp},
        "quantization": {"quant_algo": None},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(tp * pp):
        stage, place = divmod(rank, tp)
        tensors = {}
        padded = {
            name: torch.nn.functional.pad(source[name], (0, 0, 0, -QWEN.vocab % tp))
            for name in ("model.embed_tokens.weight", "lm_head.weight")
        }
        if stage == 0:
            embedding = part(padded["model.embed_tokens.weight"], 0, place, tp)
            tensors["transformer.vocab_embedding.weight"] = embedding
        if stage == pp - 1:
            tensors["transformer.ln_f.weight"] = source["model.norm.weight"]
            tensors["lm_head.weight"] = part(padded["lm_head.weight"], 0, place, tp)
        for local in range(QWEN.layers // pp):
            ours = f"transformer.layers.{local}."
            theirs = f"model.layers.{local + stage * QWEN.layers // pp}."
            for kind in ("weight", "bias"):
                tensors[f"{ours}attention.qkv.{kind}"] = fused(source, theirs, kind, place, tp)
            for name, hf, dimension in (
                ("attention.dense", "self_attn.o_proj", 1),
                ("mlp.fc", "mlp.gate_proj", 0),
                ("mlp.gate", "mlp.up_proj", 0),
                ("mlp.proj", "mlp.down_proj", 1),
            ):
                weight = part(source[f"{theirs}{hf}.weight"], dimension, place, tp)
                tensors[f"{ours}{name}.weight"] = weight
            for name in ("input_layernorm", "post_layernorm"):
                hf = name.replace("post_", "post_attention_")
                tensors[f"{ours}{name}.weight"] = source[f"{theirs}{hf}.weight"]
        save_file(tensors, folder / f"rank{rank}.safetensors")


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_ranks_are_joined_to_the_source(tmp_path: Path, tp: int, pp: int) -> None:
    draw = torch.Generator().manual_seed(0)
    source = {name: torch.randn(size, generator=draw) for name, size in QWEN.tensors()}
    write_qnemo(tmp_path, source, tp, pp)
    with QnemoWeights(tmp_path, QWEN) as weights:
        for name, tensor in source.items():
            found = weights.tensor(name)
            assert found is not None
            assert torch.equal(found, tensor), name
