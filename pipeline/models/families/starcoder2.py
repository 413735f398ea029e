"""StarCoder2: layer norms, biases on every linear layer, and a feed-forward part without a gate."""

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

_NEMO = "nemo.collections.llm.gpt.model.starcoder2"

STARCODER2 = Family(
    name="starcoder2",
    title="StarCoder2",
    architectures=("Starcoder2ForCausalLM",),
    model_type="starcoder2",
    layer=Layer(
        (
            INPUT_NORM,
            QKV,
            OUTPUT,
            MLP_NORM,
            replace(UP, parts=(Part("mlp.c_fc", ("ffn",), "mlp.fc"),)),
            replace(DOWN, parts=(Part("mlp.c_proj", ("hidden",), "mlp.proj"),)),
        )
    ),
    keys=ConfigKeys(
        activation_default="gelu_pytorch_tanh",
        norm_eps="norm_epsilon",
        norm_eps_default=1e-5,
        kv_heads_default=2,
        tied_default=True,
        initializer_default=0.018042,
        attention_bias="use_bias",
        mlp_bias="use_bias",
        bias_default=True,
        dropouts=("residual_dropout", "embedding_dropout"),
    ),
    nemo=NemoModel(model=f"{_NEMO}:Starcoder2Model", config=f"{_NEMO}:Starcoder2Config"),
    trtllm=None,
    refused={
        "qnemo": NO_QNEMO,
        "onnxruntime": "ONNX Runtime GenAI 0.12 has no builder for StarCoder2: use engine=hf or "
        "engine=vllm",
    },
    norm="LayerNorm",
    window=Window(),
)
