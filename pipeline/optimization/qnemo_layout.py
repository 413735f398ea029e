"""The rules of a qnemo folder: a TensorRT-LLM checkpoint and a tokenizer.

    check_qnemo(folder, "fp8", "llama")     # broken rules in words, none for a good folder
    check_config(folder, shape)             # sizes that differ from the source's

From TensorRT-LLM 1.2: docs/legacy/architecture/checkpoint.md for the files and their sharding,
models/modeling_utils.py and quantization/layers.py for the tensors that each format's layers fill.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.models.architecture import Shape
from pipeline.models.families import FAMILIES
from pipeline.models.families.record import Layer, Size
from pipeline.optimization.layout_rules import (
    TOKENIZER,
    TYPES,
    Json,
    Tensor,
    check_algorithm,
    compare,
    missing_files,
    read_header,
    storage_in,
)


def check_qnemo(folder: Path, format: str, family: str) -> list[str]:
    """Broken rules of a qnemo folder that should hold weights of a format and a model family."""
    try:
        config = json.loads((folder / "config.json").read_text())
        tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
        problems = _check_mapping(config, folder)
        problems += check_algorithm(config["quantization"], format)
        problems += _check_files(folder, config)
        target = FAMILIES[family].trtllm
        if target is None:
            return [f"{family} has no TensorRT-LLM checkpoint"]
        if config["architecture"] != (architecture := target.architecture):
            problems.append(f"architecture is {config['architecture']!r}, must be {architecture!r}")
        for pp_rank in range(pp):
            for tp_rank in range(tp):
                file = folder / f"rank{pp_rank * tp + tp_rank}.safetensors"
                if file.is_file():
                    found = _vectors(read_header(file))
                    problems += compare(file.name, found, _rank(config, family, pp_rank))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return [f"{folder} cannot be read: {type(error).__name__} {error}"]
    return problems


def check_config(folder: Path, shape: Shape) -> list[str]:
    """Sizes in a qnemo folder's config.json that differ from the source model's."""
    config = json.loads((folder / "config.json").read_text())
    expected: dict[str, Any] = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_size": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rotary_base": shape.rope_theta,
        "norm_epsilon": shape.norm_eps,
        "hidden_act": shape.activation,
    }
    rope, scaling = shape.rope_scaling, config.get("rotary_scaling")
    if rope is None:
        expected["rotary_scaling"] = None
    else:
        scaling = scaling or {}
        kind = "type" if "type" in scaling else "rope_type"  # TensorRT-LLM reads either
        renamed = {"original_max_positions": "original_max_position_embeddings"}
        numbers = {renamed.get(name, name): value for name, value in vars(rope).items()}
        given = {name: value for name, value in numbers.items() if value is not None}
        expected["rotary_scaling"] = {**scaling, **given, kind: rope.kind}
        expected["rotary_scaling"].pop("kind", None)
    return [
        f"config.json: {name} is {config.get(name)!r}, the source has {value!r}"
        for name, value in expected.items()
        if config.get(name) != value
    ]


def _check_mapping(config: Json, folder: Path) -> list[str]:
    mapping, problems = config["mapping"], []
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    if mapping["world_size"] != tp * pp:
        problems.append(f"mapping: world_size {mapping['world_size']} is not {tp} x {pp}")
    wanted = {f"rank{rank}.safetensors" for rank in range(tp * pp)}
    found = {file.name for file in folder.glob("*.safetensors")}
    problems += [f"{name} is missing" for name in sorted(wanted - found)]
    problems += [f"{name} belongs to no rank" for name in sorted(found - wanted)]
    for name in ("num_attention_heads", "num_key_value_heads"):
        if config[name] % tp:
            problems.append(f"{name} {config[name]} cannot be split over {tp} ranks")
    if config["num_hidden_layers"] % pp:
        problems.append(f"{config['num_hidden_layers']} layers cannot be split over {pp} stages")
    if not config["use_parallel_embedding"] or config["embedding_sharding_dim"] != 0:
        problems.append("the embedding must be split on dimension 0 (use_parallel_embedding)")
    return problems


def _check_files(folder: Path, config: Json) -> list[str]:
    problems = missing_files(folder, TOKENIZER)
    quantized = config["quantization"]["quant_algo"] is not None
    if quantized == (folder / "quant_cfg.json").is_file():
        problems.append(
            "quant_cfg.json is there for one format in all layers"
            if quantized
            else "quant_cfg.json is missing, which an unquantized checkpoint has"
        )
    return problems


def _vectors(header: dict[str, Tensor]) -> dict[str, Tensor]:
    """A header in which a single number, (), counts as a vector of one, (1,).

    TensorRT-LLM's parameters take either (parameter.py, `value`), and ModelOpt writes both.
    """
    return {name: (kind, shape or (1,)) for name, (kind, shape) in header.items()}


def _rank(config: Json, family: str, pp_rank: int) -> dict[str, Tensor]:
    """Tensors of a rank's file. All tensor-parallel ranks of a stage have the same shapes."""
    tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    dtype, hidden = TYPES[config["dtype"]], config["hidden_size"]
    head, kv_heads = config["head_size"], config["num_key_value_heads"]
    sizes: dict[Size, int] = {
        "hidden": hidden,
        "q": config["num_attention_heads"] * head,
        "kv": kv_heads * head,
        "ffn": config["intermediate_size"],
        "head": head,
    }
    rows = math.ceil(config["vocab_size"] / tp)
    expected: dict[str, Tensor] = {}
    if pp_rank == 0:
        expected["transformer.vocab_embedding.weight"] = (dtype, (rows, hidden))
    if pp_rank == pp - 1:
        expected["transformer.ln_f.weight"] = (dtype, (hidden,))
        if not config["share_embedding_table"]:
            expected["lm_head.weight"] = (dtype, (rows, hidden))
    for number in range(config["num_hidden_layers"] // pp):
        expected |= _layer(
            f"transformer.layers.{number}.", FAMILIES[family].layer, sizes, dtype, config
        )
    return expected


def _layer(
    prefix: str, layer: Layer, sizes: Mapping[Size, int], dtype: str, config: Json
) -> Iterator[tuple[str, Tensor]]:
    """A rank's tensors of a layer. sizes: of the whole model."""
    tp, quantization = config["mapping"]["tp_size"], config["quantization"]
    for norm in layer.norms:
        yield f"{prefix}{norm.qnemo}.weight", (dtype, (sizes[norm.size],))
    if quantization["kv_cache_quant_algo"] == "FP8":
        for part in ("k", "v", "kv"):
            yield f"{prefix}attention.{part}_cache_scaling_factor", ("F32", (1,))
    for name, linear, parts in layer.qnemo_linears():
        rows, columns = (
            sum(sizes[block] for part in parts for block in part.outputs),
            sizes[linear.inputs],
        )
        shape = (rows // tp, columns) if linear.split == 0 else (rows, columns // tp)
        yield from _linear(prefix + name, shape, dtype, quantization)
        # Other biases are refused before (Shape.no_qnemo).
        if linear.bias == "qkv_bias" and config.get("attn_bias"):
            yield f"{prefix}{name}.bias", (dtype, shape[:1])


def _linear(
    module: str, shape: tuple[int, int], dtype: str, quantization: Json
) -> Iterator[tuple[str, Tensor]]:
    storage = storage_in(module, quantization)
    if storage is None:
        yield module + ".weight", (dtype, shape)
        return
    yield module + ".weight", (storage.weight, storage.stored_shape(*shape))
    yield (
        module + ".weights_scaling_factor",
        (storage.scale_type, storage.scale_shape(*shape) or (1,)),
    )
    if storage.largest_input:
        yield module + ".activation_scaling_factor", ("F32", (1,))
    if storage.second_scale:
        yield module + ".weights_scaling_factor_2", ("F32", (1,))
    if storage.prescaled:
        yield module + ".prequant_scaling_factor", (dtype, (shape[1],))
