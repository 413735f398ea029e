"""Mixtral: Mistral's attention, and experts in place of the feed-forward part."""

from dataclasses import replace

from pipeline.models.families.llama import INPUT_NORM, MLP_NORM, OUTPUT, QKV
from pipeline.models.families.record import (
    ConfigKeys,
    Experts,
    Family,
    Layer,
    Linear,
    NemoModel,
    Part,
    Plain,
    Routing,
    TensorRTLLM,
    Window,
)

_NEMO = "nemo.collections.llm.gpt.model.mixtral"

# Whose limits models with experts meet.
EXPERTS_QNEMO = (
    "this pipeline does not prove experts in TensorRT-LLM's checkpoint format yet; TensorRT-LLM's "
    "PyTorch backend and vLLM load the unified HF folder"
)
EXPERTS_ONNX = (
    "ONNX Runtime GenAI's builder does not know the architecture: choose engine=hf, vllm or trtllm"
)

# In Megatron-Core the norm in front of experts is a module of its own, with Transformer Engine too.
EXPERTS_NORM = replace(MLP_NORM, megatron="pre_mlp_layernorm.")


def experts(block: str, gate: str, up: str, down: str) -> Experts:
    """SwiGLU experts by HF's names: of the block and of an expert's three layers.

    Megatron keeps each expert in modules of its own. Its grouped experts are faster on a GPU, but
    an adapter of theirs is one for all of them, which no other library has.
    """
    return Experts(
        (
            Linear(
                "mlp.experts.local_experts.{}.linear_fc1",
                (
                    Part(f"{block}.experts.{{}}.{gate}", ("expert",), "mlp.fc"),
                    Part(f"{block}.experts.{{}}.{up}", ("expert",), "mlp.fc"),
                ),
                inputs="hidden",
                split=0,
            ),
            Linear(
                "mlp.experts.local_experts.{}.linear_fc2",
                (Part(f"{block}.experts.{{}}.{down}", ("hidden",), "mlp.proj"),),
                inputs="expert",
                split=1,
            ),
        )
    )


def router(hf: str) -> Plain:
    """The weight that chooses among experts, by HF's name."""
    return Plain(hf, "mlp.router.weight", ("experts", "hidden"))


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
    trtllm=TensorRTLLM(decoder="llama", architecture="MixtralForCausalLM"),
    window=Window(),
    routing=Routing(count="num_local_experts"),
    refused={"qnemo": EXPERTS_QNEMO, "onnxruntime": EXPERTS_ONNX},
)
