"""StableLM 2: Llama's layer with layer norms, of which a part of each head is rotated."""

from pipeline.models.families.llama import LLAMA
from pipeline.models.families.record import NO_QNEMO, ConfigKeys

STABLELM = LLAMA.named(
    "stablelm",
    "StableLM",
    "StableLmForCausalLM",
    model_type="stablelm",
    keys=ConfigKeys(
        norm_eps="layer_norm_eps",
        norm_eps_default=1e-5,
        kv_heads_default=32,
        rotary_share_default=0.25,
        attention_bias="use_qkv_bias",
        output_bias=False,
        dropouts=("hidden_dropout",),
        never={
            "use_parallel_residual": "attention and feed-forward part side by side",
            "qk_layernorm": "norms for each head",
        },
    ),
    trtllm=None,
    norm="LayerNorm",
    key_value_heads_optional=False,
    ropes=(),
    no_ropes="no StableLM was published with one, so it has no proof here: remove it",
    refused={
        "qnemo": NO_QNEMO,
        "onnxruntime": "ONNX Runtime GenAI 0.12 has no builder for StableLM: use engine=hf or "
        "engine=vllm",
        "kv_cache": "ModelOpt 0.37 cannot put quantizers into its attention: set "
        "quantize.kv_cache=none",
    },
)
