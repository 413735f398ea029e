"""Llama 2 and 3, and the layer that Llama-like families share."""

from pipeline.models.families.record import (
    ConfigKeys,
    Family,
    Layer,
    Linear,
    NemoModel,
    Norm,
    Part,
    TensorRTLLM,
)

INPUT_NORM = Norm(
    hf="input_layernorm",
    megatron="self_attention.linear_qkv.layer_norm_",
    megatron_local="input_layernorm.",
    qnemo="input_layernorm",
)
QKV = Linear(
    "self_attention.linear_qkv",
    (
        Part("self_attn.q_proj", ("q",), "attention.qkv"),
        Part("self_attn.k_proj", ("kv",), "attention.qkv"),
        Part("self_attn.v_proj", ("kv",), "attention.qkv"),
    ),
    inputs="hidden",
    split=0,
    after="input_layernorm",
    interleaved=True,
    bias="qkv_bias",
)
OUTPUT = Linear(
    "self_attention.linear_proj",
    (Part("self_attn.o_proj", ("hidden",), "attention.dense"),),
    inputs="q",
    split=1,
    bias="output_bias",
)
MLP_NORM = Norm(
    hf="post_attention_layernorm",
    megatron="mlp.linear_fc1.layer_norm_",
    megatron_local="pre_mlp_layernorm.",
    qnemo="post_layernorm",
)
UP = Linear(
    "mlp.linear_fc1",
    (
        # TensorRT-LLM's fc is HF's gate.
        Part("mlp.gate_proj", ("ffn",), "mlp.fc"),
        Part("mlp.up_proj", ("ffn",), "mlp.gate"),
    ),
    inputs="hidden",
    split=0,
    after="post_attention_layernorm",
    bias="mlp_bias",
)
DOWN = Linear(
    "mlp.linear_fc2",
    (Part("mlp.down_proj", ("hidden",), "mlp.proj"),),
    inputs="ffn",
    split=1,
    bias="mlp_bias",
)
LAYER = Layer((INPUT_NORM, QKV, OUTPUT, MLP_NORM, UP, DOWN))
_NEMO = "nemo.collections.llm.gpt.model.llama"

LLAMA = Family(
    name="llama",
    title="Llama",
    architectures=("LlamaForCausalLM",),
    model_type="llama",
    layer=LAYER,
    keys=ConfigKeys(mlp_bias="mlp_bias"),
    nemo=NemoModel(
        model=f"{_NEMO}:LlamaModel",
        config=f"{_NEMO}:LlamaConfig",
        rope_configs={"llama3": f"{_NEMO}:Llama31Config"},
    ),
    trtllm=TensorRTLLM(decoder="llama", architecture="LlamaForCausalLM"),
    key_value_heads_optional=True,
)
