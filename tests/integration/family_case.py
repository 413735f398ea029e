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
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.uniform_(weight, -0.5, 0.5)
    model.save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": partial(make, family="Llama"),
    "qwen2": partial(make, family="Qwen2"),
    "qwen3": partial(make, family="Qwen3", head_dim=64),
    "mistral": partial(make, family="Mistral", sliding_window=None),
}
