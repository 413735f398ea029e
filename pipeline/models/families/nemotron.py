"""Nemotron 3 and 4: layer norms of (weight + 1), squared ReLU, half of each head rotated."""

from dataclasses import replace

from pipeline.models.families.llama import DOWN, INPUT_NORM, MLP_NORM, OUTPUT, QKV, UP
from pipeline.models.families.record import (
    NO_QNEMO,
    ConfigKeys,
    Family,
    Layer,
    NemoModel,
    Part,
)

_NEMO = "nemo.collections.llm.gpt.model.nemotron"

NEMOTRON = Family(
    name="nemotron",
    title="Nemotron",
    architectures=("NemotronForCausalLM",),
    model_type="nemotron",
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
    keys=ConfigKeys(
        activation_default="relu2",
        norm_eps="norm_eps",
        norm_eps_default=1e-5,
        rotary_share_default=0.5,
        initializer_default=0.0134,
        mlp_bias="mlp_bias",
    ),
    nemo=NemoModel(model=f"{_NEMO}:NemotronModel", config=f"{_NEMO}:NemotronConfig"),
    trtllm=None,
    refused={
        "qnemo": NO_QNEMO,
        "kv_cache": "ModelOpt 0.37 cannot put quantizers into its attention: set "
        "quantize.kv_cache=none",
    },
    norm="LayerNorm",
    zero_centered=True,
    ropes=(),
    no_ropes="transformers' class of the family ignores it: remove it",
)
