"""Arcee (AFM): Llama's layer with a feed-forward part of squared ReLU, without a gate."""

from dataclasses import replace

from pipeline.models.families.llama import DOWN, INPUT_NORM, LLAMA, MLP_NORM, OUTPUT, QKV, UP
from pipeline.models.families.record import NO_QNEMO, ConfigKeys, Layer, Part

ARCEE = LLAMA.named(
    "arcee",
    "Arcee",
    "ArceeForCausalLM",
    model_type="arcee",
    layer=Layer(
        (
            INPUT_NORM,
            QKV,
            OUTPUT,
            MLP_NORM,
            replace(UP, parts=(Part("mlp.up_proj", ("ffn",), "mlp.fc"),)),
            DOWN,
        )
    ),
    keys=ConfigKeys(activation_default="relu2", norm_eps_default=1e-5, mlp_bias="mlp_bias"),
    trtllm=None,
    refused={
        "qnemo": NO_QNEMO,
        "onnxruntime": "ONNX Runtime GenAI 0.12 has no builder for Arcee: use engine=hf or "
        "engine=vllm",
    },
)
