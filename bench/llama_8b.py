"""An HF folder of Llama 3's 8 B shape with random weights and a tokenizer of that size.

Serving speed depends on shapes, not on values of weights. So no real model has to be copied to a
GPU host without a network.
"""

import json
from pathlib import Path
from typing import Any

from bench.origin import ROOT

TOKENIZER = ROOT / "data" / "base_model"
VOCABULARY = 128_256
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}
# The quantization config that stage=export writes for FP8 weights.
FP8 = {
    "config_groups": {
        "group_0": {
            "input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
            "weights": {"dynamic": False, "num_bits": 8, "type": "float"},
            "targets": ["Linear"],
        }
    },
    "ignore": ["lm_head"],
    "quant_algo": "FP8",
    "producer": {"name": "modelopt", "version": "0.37.0"},
    "quant_method": "modelopt",
}


def write_shape(folder: Path, *, fp8: bool = False) -> Path:
    """config.json and tokenizer, without weights: enough for vLLM's load_format=dummy."""
    folder.mkdir(parents=True, exist_ok=True)
    quantized = {"quantization_config": FP8} if fp8 else {}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **quantized}, indent=1))
    if fp8:
        quantization = {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head"],
        }
        about = {"producer": FP8["producer"], "quantization": quantization}
        (folder / "hf_quant_config.json").write_text(json.dumps(about, indent=1))
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # Tokens that no merge produces: text is tokenized as before, and every id has a text.
    vocabulary |= {f"Ġw{number}": number for number in range(len(vocabulary), VOCABULARY)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    given = (TOKENIZER / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(given)
    return folder


def write_random(folder: Path) -> Path:
    """The same with random bfloat16 weights, 16 GB, created on the GPU. Keeps a complete folder."""
    import torch
    from safetensors.torch import save_file

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return folder
    write_shape(folder)
    torch.manual_seed(1)
    shapes = tensor_shapes()
    groups: dict[str, list[str]] = {}
    for name in shapes:
        layer = name.split(".")[2] if name.startswith("model.layers") else "ends"
        groups.setdefault(layer, []).append(name)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups.values(), start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: _random(name, shapes[name]) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    size = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    return folder


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor by its name in HF checkpoints."""
    hidden, ffn = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    keys = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCABULARY, hidden),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (keys, hidden),
            f"{at}.self_attn.v_proj.weight": (keys, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (ffn, hidden),
            f"{at}.mlp.up_proj.weight": (ffn, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, ffn),
        }
    return shapes


def _random(name: str, shape: tuple[int, ...]) -> Any:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
    if name == "lm_head.weight":
        tensor[: CONFIG["pad_token_id"] + 1] = (
            0  # never the likeliest, so that no greedy output ends early
        )
    return tensor.cpu()
