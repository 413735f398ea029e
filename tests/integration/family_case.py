"""Tiny random models of every family, as Hugging Face folders with a tokenizer.

    MODELS["qwen3"](folder)          # writes the folder and returns it

Sizes are such that every weight format fits. Norms and biases are random, as ones and zeros would
hide what is done to them.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.unit.model_folders import make_model_folder

MAX_POSITIONS = 192  # longer than the prompts of the proofs


def make(folder: Path, family: str, **settings: Any) -> Path:
    """Write a model of two layers. family: the beginning of transformers' class names.

    settings: of transformers' configuration, beyond the sizes.
    """
    import torch
    import transformers

    make_model_folder(folder, "demo")
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": 64 * -(-(vocabulary + 16) // 64),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": MAX_POSITIONS,
            "bos_token_id": 0,
            "eos_token_id": 4,
            "pad_token_id": 4,
            "initializer_range": 0.1,
            **settings,
        }
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.uniform_(weight, -0.5, 0.5)
    model.save_pretrained(folder)
    return folder


# A window shorter than the prompts of the proofs, in some layers or in all.
_WINDOW = 24
_FOUR_LAYERS = {"num_hidden_layers": 4, "sliding_window": _WINDOW}
_EXPERTS = {"moe_intermediate_size": 128, "num_experts_per_tok": 2}

MODELS: dict[str, Callable[[Path], Path]] = {
    "mixtral": partial(make, family="Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": partial(
        make,
        family="Qwen2Moe",
        num_experts=4,
        shared_expert_intermediate_size=128,
        num_hidden_layers=3,
        mlp_only_layers=[1],
        **_EXPERTS,
    ),
    "qwen3_moe": partial(
        make, family="Qwen3Moe", num_experts=4, norm_topk_prob=True, head_dim=64, **_EXPERTS
    ),
    "llama": partial(make, family="Llama"),
    "qwen2": partial(make, family="Qwen2"),
    "qwen3": partial(make, family="Qwen3", head_dim=64),
    "mistral": partial(make, family="Mistral", sliding_window=None),
    "gemma": partial(make, family="Gemma", num_key_value_heads=1),
    "gemma2": partial(
        make,
        family="Gemma2",
        query_pre_attn_scalar=48,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        **_FOUR_LAYERS,
    ),
    "gemma3_text": partial(
        make,
        family="Gemma3Text",
        sliding_window_pattern=3,
        query_pre_attn_scalar=48,
        **_FOUR_LAYERS,
    ),
    "phi3": partial(make, family="Phi3", original_max_position_embeddings=MAX_POSITIONS),
    # With weights as small as the others' its predictions would hardly depend on the context, and
    # rounding would cost a large share of the little that they say.
    "starcoder2": partial(make, family="Starcoder2", initializer_range=0.3),
    "nemotron": partial(make, family="Nemotron", intermediate_size=512),
    "ministral": partial(
        make,
        family="Ministral",
        layer_types=["sliding_attention", "full_attention"] * 2,
        **_FOUR_LAYERS,
    ),
    "arcee": partial(make, family="Arcee", intermediate_size=512),
    "seed_oss": partial(make, family="SeedOss", attention_dropout=0.0, residual_dropout=0.0),
    "stablelm": partial(make, family="StableLm", head_dim=None),
}


_LONGROPE = {"type": "longrope", "short_factor": [1.0 + i / 16 for i in range(12)]}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}

# What a family's models may have beside what MODELS have, by family and variant.
VARIANTS: dict[str, Callable[[Path], Path]] = {
    "llama, biases of attention": partial(make, family="Llama", attention_bias=True),
    "llama, biases of the MLP": partial(make, family="Llama", mlp_bias=True),
    "llama, all biases": partial(make, family="Llama", attention_bias=True, mlp_bias=True),
    "llama, GELU": partial(make, family="Llama", hidden_act="gelu"),
    "llama, tanh GELU": partial(make, family="Llama", hidden_act="gelu_pytorch_tanh"),
    "llama, ReLU": partial(make, family="Llama", hidden_act="relu"),
    "llama, squared ReLU": partial(make, family="Llama", hidden_act="relu2"),
    "llama, tied, wide heads": partial(
        make, family="Llama", head_dim=64, tie_word_embeddings=True, num_key_value_heads=4
    ),
    "llama, llama3 rope": partial(make, family="Llama", rope_scaling=_LLAMA3),
    "llama, linear rope": partial(
        make, family="Llama", rope_scaling={"type": "linear", "factor": 4.0}
    ),
    "llama, dynamic rope": partial(
        make, family="Llama", rope_scaling={"rope_type": "dynamic", "factor": 4.0}
    ),
    "llama, YaRN": partial(make, family="Llama", rope_scaling=_YARN),
    "qwen2, YaRN": partial(make, family="Qwen2", rope_scaling=_YARN),
    "qwen2, windows": partial(
        make,
        family="Qwen2",
        use_sliding_window=True,
        sliding_window=_WINDOW,
        max_window_layers=1,
    ),
    "qwen3, YaRN and biases": partial(
        make, family="Qwen3", rope_scaling=_YARN, attention_bias=True
    ),
    "mistral, windows": partial(make, family="Mistral", sliding_window=_WINDOW),
    "mistral, llama3 rope": partial(
        make, family="Mistral", sliding_window=None, rope_scaling=_LLAMA3
    ),
    "gemma, untied": partial(make, family="Gemma", tie_word_embeddings=False),
    "gemma3_text, linear rope": partial(
        make,
        family="Gemma3Text",
        sliding_window=_WINDOW,
        sliding_window_pattern=2,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "phi3, windows": partial(
        make,
        family="Phi3",
        sliding_window=_WINDOW,
        original_max_position_embeddings=MAX_POSITIONS,
    ),
    "phi3, part of a head, longrope": partial(
        make,
        family="Phi3",
        partial_rotary_factor=0.75,
        original_max_position_embeddings=48,
        rope_scaling={**_LONGROPE, "long_factor": [2.0 + i for i in range(12)]},
    ),
    "starcoder2, windows, no biases, untied": partial(
        make,
        family="Starcoder2",
        use_bias=False,
        sliding_window=_WINDOW,
        tie_word_embeddings=False,
    ),
    "arcee, all biases": partial(make, family="Arcee", attention_bias=True, mlp_bias=True),
    "seed_oss, all biases of attention": partial(
        make,
        family="SeedOss",
        attention_out_bias=True,
        attention_dropout=0.0,
        residual_dropout=0.0,
    ),
    "stablelm, biases, whole heads": partial(
        make, family="StableLm", head_dim=None, use_qkv_bias=True, partial_rotary_factor=1.0
    ),
    "nemotron, all biases": partial(
        make, family="Nemotron", attention_bias=True, mlp_bias=True, intermediate_size=512
    ),
}


def dataset_of(model: Path, folder: Path) -> Path:
    """Write a dataset whose rows are rendered with a model's tokenizer and template."""
    from pipeline.data.dataset import write_split
    from pipeline.models.chat.renderer import Chat
    from tests.integration.quantization_case import row

    chat = Chat.load(model)
    chat.save(folder / "tokenizer")
    splits = {"train": range(24), "validation": range(24, 30), "test": range(30, 34)}
    for name, numbers in splits.items():
        write_split(folder, name, [row(chat, number) for number in numbers])
    return folder
