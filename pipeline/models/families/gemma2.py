"""Gemma 2: Gemma with norms behind attention and feed-forward part, caps and windows."""

from dataclasses import replace

from pipeline.models.families.gemma import GEMMA
from pipeline.models.families.llama import DOWN, INPUT_NORM, MLP_NORM, OUTPUT, QKV, UP
from pipeline.models.families.record import (
    NO_QNEMO,
    ConfigKeys,
    Layer,
    NemoModel,
    Norm,
    Number,
    Window,
)

_NEMO = "nemo.collections.llm.gpt.model.gemma2"

ATTENTION_POST_NORM = Norm(
    hf="post_attention_layernorm",
    megatron="self_attention.linear_proj.post_layernorm.",
    megatron_local="self_attention.post_layernorm.",
    qnemo="post_layernorm",
)
FEED_FORWARD_NORM = replace(
    MLP_NORM, hf="pre_feedforward_layernorm", qnemo="pre_feedforward_layernorm"
)
FEED_FORWARD_POST_NORM = Norm(
    hf="post_feedforward_layernorm",
    megatron="mlp.linear_fc2.post_layernorm.",
    megatron_local="mlp.post_layernorm.",
    qnemo="post_feedforward_layernorm",
)
FEED_FORWARD_UP = replace(UP, after="pre_feedforward_layernorm")
ATTENTION_SCALE = Number("attention_scale", nemo="query_pre_attn_scalar", default=256, power=-0.5)

GEMMA2 = GEMMA.named(
    "gemma2",
    "Gemma 2",
    "Gemma2ForCausalLM",
    model_type="gemma2",
    layer=Layer(
        (
            INPUT_NORM,
            QKV,
            OUTPUT,
            ATTENTION_POST_NORM,
            FEED_FORWARD_NORM,
            FEED_FORWARD_UP,
            DOWN,
            FEED_FORWARD_POST_NORM,
        )
    ),
    keys=ConfigKeys(
        activation="hidden_activation",
        activation_default="gelu_pytorch_tanh",
        head_dim_default=256,
        kv_heads_default=4,
        tied_default=True,
    ),
    nemo=NemoModel(model=f"{_NEMO}:Gemma2Model", config=f"{_NEMO}:Gemma2Config"),
    refused={
        "qnemo": NO_QNEMO,
        "onnxruntime": "ONNX Runtime GenAI 0.12 builds a model of it that computes something else: "
        "use engine=hf or engine=vllm",
    },
    numbers={
        "query_pre_attn_scalar": ATTENTION_SCALE,
        "attn_logit_softcapping": Number(
            "attention_cap", nemo="attn_logit_softcapping", default=50.0
        ),
        "final_logit_softcapping": Number(
            "logit_cap", nemo="final_logit_softcapping", default=30.0
        ),
    },
    window=Window(default=4096, by_layer=True, full_every=2),
)
