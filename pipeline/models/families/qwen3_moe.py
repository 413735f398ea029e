"""Qwen3-MoE: Qwen3's attention and experts."""

from pipeline.models.families.experts import (
    EXPERTS_NORM,
    EXPERTS_ONNX,
    EXPERTS_QNEMO,
    experts,
    router,
)
from pipeline.models.families.llama import INPUT_NORM, OUTPUT, QKV
from pipeline.models.families.qwen3 import KEY_NORM, QUERY_NORM, QWEN3
from pipeline.models.families.record import (
    ConfigKeys,
    Family,
    Layer,
    NemoModel,
    Routing,
    Window,
)

_NEMO = "nemo.collections.llm.gpt.model.qwen3"

QWEN3_MOE = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    architectures=("Qwen3MoeForCausalLM",),
    model_type="qwen3_moe",
    layer=Layer(
        (
            INPUT_NORM,
            QKV,
            QUERY_NORM,
            KEY_NORM,
            OUTPUT,
            EXPERTS_NORM,
            router("mlp.gate.weight"),
            experts("mlp", "gate_proj", "up_proj", "down_proj"),
        )
    ),
    dense=QWEN3.layer,
    keys=ConfigKeys(kv_heads_default=4),
    nemo=NemoModel(model=f"{_NEMO}:Qwen3Model", config=f"{_NEMO}:Qwen3MoEConfig"),
    trtllm=None,
    # transformers gives the window to every layer of Qwen3-MoE.
    window=Window(default=4096, switch="use_sliding_window"),
    routing=Routing(
        count="num_experts",
        size="moe_intermediate_size",
        normalized="norm_topk_prob",
        dense=("decoder_sparse_step", "mlp_only_layers"),
    ),
    refused={"qnemo": EXPERTS_QNEMO, "onnxruntime": EXPERTS_ONNX},
)
