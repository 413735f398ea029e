"""config.json of the Llama 3 models (arXiv:2407.21783, table 3; Meta's model cards), and of a small
model of the same architecture (SmolLM2-135M-Instruct's model card)."""

import json
from pathlib import Path
from typing import Any

from bench.llama_8b import CONFIG

SHAPES: dict[str, dict[str, Any]] = {
    "8b": CONFIG,
    "70b": {
        **CONFIG,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "405b": {
        **CONFIG,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    },
    "smollm2": {
        **CONFIG,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}


def write(folder: Path, size: str) -> Path:
    """A folder with only that config.json, which is all that stage=plan reads of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[size]))
    return folder
