"""Qwen3 without experts: Llama's layer with norms of queries and keys, head by head."""

from dataclasses import replace

from pipeline.models.families.llama import DOWN, INPUT_NORM, MLP_NORM, OUTPUT, QKV, UP
from pipeline.models.families.qwen2 import WINDOW
from pipeline.models.families.record import (
    ConfigKeys,
    Family,
    Layer,
    NemoModel,
    Norm,
)

_NEMO = "nemo.collections.llm.gpt.model.qwen3"

QUERY_NORM = Norm(
    hf="self_attn.q_norm",
    megatron="self_attention.q_layernorm.",
    megatron_local="self_attention.q_layernorm.",
    qnemo="attention.q_layernorm",
    size="head",
)
KEY_NORM = replace(
    QUERY_NORM,
    hf="self_attn.k_norm",
    megatron="self_attention.k_layernorm.",
    megatron_local="self_attention.k_layernorm.",
    qnemo="attention.k_layernorm",
)

QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_type="qwen3",
    layer=Layer((INPUT_NORM, QKV, QUERY_NORM, KEY_NORM, OUTPUT, MLP_NORM, UP, DOWN)),
    keys=ConfigKeys(head_dim_default=128, kv_heads_default=32),
    nemo=NemoModel(model=f"{_NEMO}:Qwen3Model", config=f"{_NEMO}:Qwen3Config"),
    trtllm=None,
    refused={
        "qnemo": "ModelOpt 0.37 writes no TensorRT-LLM checkpoint of Qwen3; only the unified HF "
        "form is written"
    },
    window=WINDOW,
)
