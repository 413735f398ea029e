"""Seed-OSS: Llama's layer with biases on query, key and value, and a switch for the output's."""

from pipeline.models.families.llama import LLAMA
from pipeline.models.families.record import NO_QNEMO, ConfigKeys

SEED_OSS = LLAMA.named(
    "seed_oss",
    "Seed-OSS",
    "SeedOssForCausalLM",
    model_type="seed_oss",
    keys=ConfigKeys(
        head_dim_default=128,
        kv_heads_default=8,
        bias_default=True,
        output_bias="attention_out_bias",
        dropouts=("residual_dropout",),
        dropout_default=0.1,
    ),
    trtllm=None,
    key_value_heads_optional=False,
    refused={
        "qnemo": NO_QNEMO,
        "onnxruntime": "ONNX Runtime GenAI 0.12 has no builder for Seed-OSS: use engine=hf or "
        "engine=vllm",
    },
)
