"""Ministral: Mistral, with a window in the layers that config.json names."""

from pipeline.models.families.mistral import MISTRAL
from pipeline.models.families.record import NO_QNEMO, Window

MINISTRAL = MISTRAL.named(
    "ministral",
    "Ministral",
    "MinistralForCausalLM",
    model_type="ministral",
    trtllm=None,
    window=Window(default=4096, by_layer=True),
    refused={
        "qnemo": NO_QNEMO,
        "onnxruntime": "ONNX Runtime GenAI 0.12 has no builder for Ministral: use engine=hf or "
        "engine=vllm",
    },
)
