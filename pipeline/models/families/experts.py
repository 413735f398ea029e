"""What families with experts share: their layers' pieces, and the limits that they meet."""

from dataclasses import replace

from pipeline.models.families.llama import MLP_NORM
from pipeline.models.families.record import Experts, Linear, Part, Plain

# Whose limits models with experts meet.
EXPERTS_QNEMO = (
    "this pipeline has no proof of experts in TensorRT-LLM's checkpoint format; only the unified "
    "HF form is written"
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


def shared_expert(block: str) -> tuple[Linear, Linear]:
    """The expert that every token goes through, by HF's name of its block."""
    return (
        Linear(
            "mlp.shared_experts.linear_fc1",
            (
                Part(f"{block}.gate_proj", ("shared",), "mlp.shared_expert.fc"),
                Part(f"{block}.up_proj", ("shared",), "mlp.shared_expert.gate"),
            ),
            inputs="hidden",
            split=0,
        ),
        Linear(
            "mlp.shared_experts.linear_fc2",
            (Part(f"{block}.down_proj", ("hidden",), "mlp.shared_expert.proj"),),
            inputs="shared",
            split=1,
        ),
    )
