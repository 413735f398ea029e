"""Phi-3 and Phi-4: Llama's layer, whose checkpoints hold q, k and v as one, and gate and up."""

from dataclasses import replace

from pipeline.models.families.llama import DOWN, INPUT_NORM, MLP_NORM, OUTPUT, QKV, UP
from pipeline.models.families.record import (
    NO_QNEMO,
    ConfigKeys,
    Family,
    Layer,
    NemoModel,
    Part,
    Window,
)

_NEMO = "nemo.collections.llm.gpt.model.phi3mini"

PHI3 = Family(
    name="phi3",
    title="Phi-3",
    architectures=("Phi3ForCausalLM",),
    model_type="phi3",
    layer=Layer(
        (
            INPUT_NORM,
            replace(QKV, parts=(Part("self_attn.qkv_proj", ("q", "kv", "kv"), "attention.qkv"),)),
            OUTPUT,
            MLP_NORM,
            replace(UP, parts=(Part("mlp.gate_up_proj", ("ffn", "ffn"), "mlp.fc"),)),
            DOWN,
        )
    ),
    keys=ConfigKeys(
        attention_bias=None, norm_eps_default=1e-5, dropouts=("resid_pdrop", "embd_pdrop")
    ),
    nemo=NemoModel(model=f"{_NEMO}:Phi3Model", config=f"{_NEMO}:Phi3Config"),
    trtllm=None,
    refused={"qnemo": NO_QNEMO},
    key_value_heads_optional=True,
    window=Window(),
    # transformers' configuration of the family takes no other.
    ropes=("longrope",),
)
