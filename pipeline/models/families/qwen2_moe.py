"""Qwen2-MoE: Qwen2's attention, experts, and one more that every token goes through."""

from pipeline.models.families.experts import (
    EXPERTS_NORM,
    EXPERTS_ONNX,
    EXPERTS_QNEMO,
    experts,
    router,
    shared_expert,
)
from pipeline.models.families.llama import INPUT_NORM, OUTPUT, QKV
from pipeline.models.families.qwen2 import QWEN2
from pipeline.models.families.record import (
    SHARED_GATE,
    ConfigKeys,
    Family,
    Layer,
    NemoModel,
    Plain,
    Routing,
    Window,
)

_NEMO = "nemo.collections.llm.gpt.model.qwen2"


QWEN2_MOE = Family(
    name="qwen2_moe",
    title="Qwen2-MoE",
    architectures=("Qwen2MoeForCausalLM",),
    model_type="qwen2_moe",
    layer=Layer(
        (
            INPUT_NORM,
            QKV,
            OUTPUT,
            EXPERTS_NORM,
            router("mlp.gate.weight"),
            experts("mlp", "gate_proj", "up_proj", "down_proj"),
            *shared_expert("mlp.shared_expert"),
            Plain("mlp.shared_expert_gate.weight", SHARED_GATE, ("one", "hidden")),
        )
    ),
    dense=QWEN2.layer,
    keys=ConfigKeys(attention_bias=None, kv_heads_default=16),
    # NeMo has no class of its own for it.
    nemo=NemoModel(model=f"{_NEMO}:Qwen2Model", config=f"{_NEMO}:Qwen2Config"),
    trtllm=None,
    # In PyTorch's attention transformers gives the window to every layer of Qwen2-MoE.
    window=Window(default=4096, switch="use_sliding_window"),
    qkv_bias=True,
    routing=Routing(
        count="num_experts",
        size="moe_intermediate_size",
        shared_size="shared_expert_intermediate_size",
        normalized="norm_topk_prob",
        dense=("decoder_sparse_step", "mlp_only_layers"),
    ),
    refused={
        "qnemo": EXPERTS_QNEMO,
        "onnxruntime": EXPERTS_ONNX,
        "kv_cache": (
            "ModelOpt 0.37 does not know its class of attention: set quantize.kv_cache=none"
        ),
    },
)
