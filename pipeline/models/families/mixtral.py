"""Mixtral: Mistral's attention, and experts in place of the feed-forward part."""

from pipeline.models.families.experts import (
    EXPERTS_NORM,
    EXPERTS_ONNX,
    EXPERTS_QNEMO,
    experts,
    router,
)
from pipeline.models.families.llama import INPUT_NORM, OUTPUT, QKV
from pipeline.models.families.record import (
    ConfigKeys,
    Family,
    Layer,
    NemoModel,
    Routing,
    Window,
)

_NEMO = "nemo.collections.llm.gpt.model.mixtral"


MIXTRAL = Family(
    name="mixtral",
    title="Mixtral",
    architectures=("MixtralForCausalLM",),
    model_type="mixtral",
    layer=Layer(
        (
            INPUT_NORM,
            QKV,
            OUTPUT,
            EXPERTS_NORM,
            router("block_sparse_moe.gate.weight"),
            experts("block_sparse_moe", "w1", "w3", "w2"),
        )
    ),
    keys=ConfigKeys(
        attention_bias=None,
        norm_eps_default=1e-5,
        rope_theta_default=1e6,
        kv_heads_default=8,
    ),
    nemo=NemoModel(model=f"{_NEMO}:MixtralModel", config=f"{_NEMO}:MixtralConfig"),
    trtllm=None,
    window=Window(),
    routing=Routing(count="num_local_experts"),
    refused={"qnemo": EXPERTS_QNEMO, "onnxruntime": EXPERTS_ONNX},
)
