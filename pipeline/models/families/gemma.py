"""Gemma 1: Llama's layer with norms of (weight + 1), GELU and scaled embeddings."""

from pipeline.models.families.llama import LAYER
from pipeline.models.families.record import NO_QNEMO, ConfigKeys, Family, NemoModel

_NEMO = "nemo.collections.llm.gpt.model.gemma"

GEMMA = Family(
    name="gemma",
    title="Gemma",
    architectures=("GemmaForCausalLM",),
    model_type="gemma",
    layer=LAYER,
    keys=ConfigKeys(
        activation_default="gelu_pytorch_tanh",
        head_dim_default=256,
        kv_heads_default=16,
        tied_default=True,
    ),
    nemo=NemoModel(model=f"{_NEMO}:GemmaModel", config=f"{_NEMO}:GemmaConfig"),
    trtllm=None,
    refused={"qnemo": NO_QNEMO},
    zero_centered=True,
)
