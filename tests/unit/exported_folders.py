"""qnemo and unified HF folders written by hand, after TensorRT-LLM's and ModelOpt's documents."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Tensors = dict[str, tuple[str, list[int]]]
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I8": 1, "U8": 1}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
# Of test_quantize's LLAMA: hidden 256, FFN 768, 8 heads of 32, 4 key-value heads, vocabulary 2048.
LINEARS = {
    "attention.qkv": ([512, 256], 0),
    "attention.dense": ([256, 256], 1),
    "mlp.fc": ([768, 256], 0),
    "mlp.gate": ([768, 256], 0),
    "mlp.proj": ([256, 768], 1),
}
HF_LINEARS = {
    "self_attn.q_proj": [256, 256],
    "self_attn.k_proj": [128, 256],
    "self_attn.v_proj": [128, 256],
    "self_attn.o_proj": [256, 256],
    "mlp.gate_proj": [768, 256],
    "mlp.up_proj": [768, 256],
    "mlp.down_proj": [256, 768],
}
ALGORITHMS: Mapping[str, dict[str, Any]] = {
    "none": {"quant_algo": None},
    "fp8": {"quant_algo": "FP8"},
    "int8_sq": {"quant_algo": "W8A8_SQ_PER_CHANNEL"},
    "int4_awq": {"quant_algo": "W4A16_AWQ"},
    "w4a8_awq": {"quant_algo": "W4A8_AWQ"},
    "nvfp4": {"quant_algo": "NVFP4"},
}


def write_tensors(file: Path, tensors: Tensors) -> None:
    """A safetensors file of zeros."""
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        size = math.prod(shape) * BYTES[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def linear(format: str, module: str, shape: list[int]) -> Iterator[tuple[str, Any]]:
    """Tensors of a linear layer in a rank's file."""
    rows, columns = shape
    kind, stored, scale = {
        "none": ("BF16", shape, None),
        "fp8": ("F8_E4M3", shape, [1]),
        "int8_sq": ("I8", shape, [rows]),
        "int4_awq": ("I8", [rows // 2, columns], [rows, columns // 128]),
        "w4a8_awq": ("I8", [rows // 2, columns], [rows, columns // 128]),
        "nvfp4": ("U8", [rows, columns // 2], [rows, columns // 16]),
    }[format]
    yield f"{module}.weight", (kind, stored)
    if scale:
        yield f"{module}.weights_scaling_factor", ("F8_E4M3" if format == "nvfp4" else "F32", scale)
    if format in ("fp8", "int8_sq", "w4a8_awq", "nvfp4"):
        yield f"{module}.activation_scaling_factor", ("F32", [1])
    if format in ("int8_sq", "int4_awq", "w4a8_awq"):
        yield f"{module}.prequant_scaling_factor", ("BF16", [columns])
    if format in ("w4a8_awq", "nvfp4"):
        yield f"{module}.weights_scaling_factor_2", ("F32", [1])


def quantization(format: str) -> dict[str, Any]:
    config = {**ALGORITHMS[format], "kv_cache_quant_algo": None}
    if format != "none":
        config["exclude_modules"] = ["lm_head"]
    if format.endswith("awq"):
        config |= {"group_size": 128, "has_zero_point": False, "pre_quant_scale": True}
    if format == "nvfp4":
        config["group_size"] = 16
    return config


def make_qnemo(folder: Path, format: str, tp: int, pp: int) -> Path:
    folder.mkdir()
    config = {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_size": 256,
        "norm_epsilon": 1e-5,
        "vocab_size": 2048,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "head_size": 32,
        "intermediate_size": 768,
        "share_embedding_table": False,
        "rotary_base": 10000.0,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": quantization(format),
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in (*TOKENIZER, *(["quant_cfg.json"] if format == "none" else [])):
        (folder / name).write_text("{}")
    for rank in range(tp * pp):
        stage, tensors = rank // tp, Tensors()
        if stage == 0:
            tensors["transformer.vocab_embedding.weight"] = ("BF16", [2048 // tp, 256])
        if stage == pp - 1:
            tensors["transformer.ln_f.weight"] = ("BF16", [256])
            tensors["lm_head.weight"] = ("BF16", [2048 // tp, 256])
        for layer in range(4 // pp):
            prefix = f"transformer.layers.{layer}."
            for norm in ("input_layernorm", "post_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = ("BF16", [256])
            for name, (shape, dimension) in LINEARS.items():
                part = [size // tp if d == dimension else size for d, size in enumerate(shape)]
                tensors |= linear(format, prefix + name, part)
        write_tensors(folder / f"rank{rank}.safetensors", tensors)
    return folder


def make_unified(folder: Path, format: str) -> Path:
    folder.mkdir()
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "max_position_embeddings": 512,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "vocab_size": 2048,
    }
    if format != "none":
        facts = quantization(format)
        config["quantization_config"] = {
            "quant_method": "modelopt",
            "ignore": facts["exclude_modules"],
            **{key: facts[key] for key in ("quant_algo", "group_size") if key in facts},
        }
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": facts}))
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER:
        (folder / name).write_text("{}")
    tensors: Tensors = {
        "model.embed_tokens.weight": ("BF16", [2048, 256]),
        "model.norm.weight": ("BF16", [256]),
        "lm_head.weight": ("BF16", [2048, 256]),
    }
    names = {
        "weights_scaling_factor": "weight_scale",
        "activation_scaling_factor": "input_scale",
        "prequant_scaling_factor": "pre_quant_scale",
        "weights_scaling_factor_2": "weight_scale_2",
    }
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = ("BF16", [256])
        for module, shape in HF_LINEARS.items():
            for full, (kind, size) in linear(format, prefix + module, shape):
                place, _, name = full.rpartition(".")
                if name == "weight" and format.endswith("awq"):
                    kind = "U8"
                in_norm = format.endswith("awq") and module[-6:] not in ("o_proj", "n_proj")
                if name == "prequant_scaling_factor" and in_norm:
                    continue
                tensors[f"{place}.{names.get(name, name)}"] = (kind, [] if size == [1] else size)
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(file: Path, change: Callable[[Tensors], object]) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensors = {name: (t["dtype"], t["shape"]) for name, t in header.items()}
    change(tensors)
    write_tensors(file, tensors)
