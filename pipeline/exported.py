"""What the folders that export writes must hold; reads JSON and safetensors headers, no weights.

    check_qnemo(folder, "fp8")         # a TensorRT-LLM checkpoint and a tokenizer
    check_unified_hf(folder, "fp8")    # ModelOpt's unified HF checkpoint

Both give the broken rules in words, an empty list for a good folder. The rules are those of
TensorRT-LLM 1.2 (docs/legacy/architecture/checkpoint.md, models/modeling_utils.py) for the first
and of ModelOpt 0.37 and vLLM (modelopt quantization) for the second. Knows no vendor's library.
"""

import fnmatch
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.checkpoints import Shape
from pipeline.config import QuantizationFormat

Header = Mapping[str, tuple[str, tuple[int, ...]]]  # tensor → safetensors type, shape
Expected = dict[str, tuple[str, tuple[int, ...]]]
Json = Mapping[str, Any]

GROUP = 128  # weights that share a scale in the AWQ formats
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Layout:
    """How a format's linear layers are stored.

    algorithm: quant_algo in the configuration.
    weight, unified_weight: safetensors type in qnemo and in the unified HF checkpoint.
    packing: rows of the matrix in a row of the tensor.
    scale: one weight scale a "tensor", a "row" or a "group" of GROUP in a row.
    inputs_scaled: activations are quantized. prescaled: inputs are multiplied by a vector before.
    second_scale: the weights are rounded a second time.
    """

    algorithm: str
    weight: str
    unified_weight: str
    packing: int
    scale: str
    inputs_scaled: bool
    prescaled: bool
    second_scale: bool = False


LAYOUTS = {
    "fp8": Layout("FP8", "F8_E4M3", "F8_E4M3", 1, "tensor", True, False),
    "int8_sq": Layout("W8A8_SQ_PER_CHANNEL", "I8", "I8", 1, "row", True, True),
    "int4_awq": Layout("W4A16_AWQ", "I8", "U8", 2, "group", False, True),
    "w4a8_awq": Layout("W4A8_AWQ", "I8", "U8", 2, "group", True, True, second_scale=True),
}
_BY_ALGORITHM = {layout.algorithm: layout for layout in LAYOUTS.values()}


def check_qnemo(folder: Path, format: QuantizationFormat) -> list[str]:
    """Broken rules of a qnemo folder that should hold weights of a format."""
    try:
        config = json.loads((folder / "config.json").read_text())
        tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
        problems = _check_mapping(config, folder)
        problems += _check_algorithm(config["quantization"], format)
        problems += _check_qnemo_files(folder, config)
        for pp_rank in range(pp):
            for tp_rank in range(tp):
                file = folder / f"rank{pp_rank * tp + tp_rank}.safetensors"
                if file.is_file():
                    problems += _compare(file, read_header(file), _rank(config, pp_rank))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return [f"{folder} cannot be read: {type(error).__name__} {error}"]
    return problems


def check_unified_hf(folder: Path, format: QuantizationFormat) -> list[str]:
    """Broken rules of a unified HF folder that should hold weights of a format."""
    try:
        config = json.loads((folder / "config.json").read_text())
        problems = _missing_files(folder, TOKENIZER)
        claimed = config.get("quantization_config")
        quant_file = folder / "hf_quant_config.json"
        if (claimed is None) != (not quant_file.is_file()):
            problems.append(
                f"{quant_file.name} and quantization_config in config.json belong together: both "
                "for a quantized model, neither for another"
            )
        quantization: Json = {"quant_algo": None, "kv_cache_quant_algo": None}
        if quant_file.is_file():
            quantization = json.loads(quant_file.read_text())["quantization"]
        problems += _check_algorithm(quantization, format)
        if claimed is not None:
            problems += _check_claim(claimed, quantization)
        header: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            header |= read_header(file)
        problems += _compare(folder, header, _unified(config, quantization))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return [f"{folder} cannot be read: {type(error).__name__} {error}"]
    return problems


def check_config(folder: Path, shape: Shape) -> list[str]:
    """Sizes in a qnemo folder's config.json that are not the source model's."""
    config = json.loads((folder / "config.json").read_text())
    expected = {
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
        "hidden_act": "silu",
    }
    if shape.rope_scaling:
        scaling = config.get("rotary_scaling") or {}
        expected["rotary_scaling"] = scaling | {
            "factor": shape.rope_scaling.factor,
            "low_freq_factor": shape.rope_scaling.low_freq_factor,
            "high_freq_factor": shape.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": shape.rope_scaling.original_max_positions,
        }
    return [
        f"config.json: {name} is {config.get(name)!r}, the source has {value!r}"
        for name, value in expected.items()
        if config.get(name) != value
    ]


def read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in a safetensors file."""
    with safe_open(file, framework="np") as tensors:
        parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def excluded(module: str, quantization: Json) -> bool:
    """Whether the configuration leaves a module as it is."""
    return any(fnmatch.fnmatch(module, p) for p in quantization.get("exclude_modules") or ())


def _check_mapping(config: Json, folder: Path) -> list[str]:
    mapping, problems = config["mapping"], []
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    if mapping["world_size"] != tp * pp:
        problems.append(f"mapping: world_size {mapping['world_size']} is not {tp} x {pp}")
    wanted = {f"rank{rank}.safetensors" for rank in range(tp * pp)}
    found = {file.name for file in folder.glob("*.safetensors")}
    problems += [f"{name} is missing" for name in sorted(wanted - found)]
    problems += [f"{name} belongs to no rank" for name in sorted(found - wanted)]
    for name, ranks in (("num_attention_heads", tp), ("num_key_value_heads", tp)):
        if config[name] % ranks:
            problems.append(f"{name} {config[name]} cannot be split over {ranks} ranks")
    if config["num_hidden_layers"] % pp:
        problems.append(f"{config['num_hidden_layers']} layers cannot be split over {pp} stages")
    if not config["use_parallel_embedding"] or config["embedding_sharding_dim"] != 0:
        problems.append("the embedding must be split on dimension 0 (use_parallel_embedding)")
    return problems


def _check_algorithm(quantization: Json, format: QuantizationFormat) -> list[str]:
    algorithm, problems = quantization["quant_algo"], []
    if quantization["kv_cache_quant_algo"] not in (None, "FP8"):
        problems.append(f"kv_cache_quant_algo {quantization['kv_cache_quant_algo']!r} is unknown")
    layout = LAYOUTS.get(format)
    wanted = layout.algorithm if layout else None
    if algorithm != wanted:
        problems.append(f"quant_algo is {algorithm!r}, must be {wanted!r} for {format}")
    if algorithm not in _BY_ALGORITHM:
        return problems
    if not excluded("lm_head", quantization):
        problems.append("exclude_modules does not name lm_head, which is not quantized")
    if _BY_ALGORITHM[algorithm].scale == "group":
        for key, value in (
            ("group_size", GROUP),
            ("has_zero_point", False),
            ("pre_quant_scale", True),
        ):
            if quantization.get(key) != value:
                problems.append(f"{key} is {quantization.get(key)!r}, must be {value!r}")
    return problems


def _check_claim(claimed: Json, quantization: Json) -> list[str]:
    """config.json against hf_quant_config.json: runtimes read either."""
    problems = []
    if claimed.get("quant_method") != "modelopt":
        problems.append(f"quant_method {claimed.get('quant_method')!r} is not 'modelopt'")
    pairs = {"quant_algo": "quant_algo", "ignore": "exclude_modules", "group_size": "group_size"}
    for ours, theirs in pairs.items():
        if claimed.get(ours) != quantization.get(theirs):
            problems.append(
                f"config.json has {ours} {claimed.get(ours)!r} and hf_quant_config.json "
                f"{quantization.get(theirs)!r}"
            )
    if ("kv_cache_scheme" in claimed) != bool(quantization["kv_cache_quant_algo"]):
        problems.append("kv_cache_scheme disagrees with kv_cache_quant_algo")
    return problems


def _check_qnemo_files(folder: Path, config: Json) -> list[str]:
    problems = _missing_files(folder, TOKENIZER)
    quantized = config["quantization"]["quant_algo"] is not None
    if quantized == (folder / "quant_cfg.json").is_file():
        problems.append(
            "quant_cfg.json is there for one format in all layers"
            if quantized
            else "quant_cfg.json is missing, which an unquantized checkpoint has"
        )
    return problems


def _missing_files(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [f"{name} is missing" for name in names if not (folder / name).is_file()]


def _rank(config: Json, pp_rank: int) -> Expected:
    """Tensors of a rank's file; all tensor-parallel ranks of a stage have the same shapes."""
    tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    dtype, hidden = _TYPES[config["dtype"]], config["hidden_size"]
    head, kv_heads = config["head_size"], config["num_key_value_heads"]
    q, kv = config["num_attention_heads"] * head // tp, kv_heads * head // tp
    ffn, rows = config["intermediate_size"] // tp, math.ceil(config["vocab_size"] / tp)
    expected: Expected = {}
    if pp_rank == 0:
        expected["transformer.vocab_embedding.weight"] = (dtype, (rows, hidden))
    if pp_rank == pp - 1:
        expected["transformer.ln_f.weight"] = (dtype, (hidden,))
        if not config["share_embedding_table"]:
            expected["lm_head.weight"] = (dtype, (rows, hidden))
    linears = {
        "attention.qkv": (q + 2 * kv, hidden),
        "attention.dense": (hidden, q),
        "mlp.fc": (ffn, hidden),
        "mlp.gate": (ffn, hidden),
        "mlp.proj": (hidden, ffn),
    }
    for number in range(config["num_hidden_layers"] // pp):
        layer = f"transformer.layers.{number}."
        expected[layer + "input_layernorm.weight"] = (dtype, (hidden,))
        expected[layer + "post_layernorm.weight"] = (dtype, (hidden,))
        if config.get("attn_bias"):
            expected[layer + "attention.qkv.bias"] = (dtype, (q + 2 * kv,))
        if config["quantization"]["kv_cache_quant_algo"] == "FP8":
            for part in ("k", "v", "kv"):
                expected[layer + f"attention.{part}_cache_scaling_factor"] = ("F32", (1,))
        for name, shape in linears.items():
            module = layer + name
            expected |= _qnemo_linear(module, shape, dtype, config["quantization"])
    return expected


def _qnemo_linear(
    module: str, shape: tuple[int, int], dtype: str, quantization: Json
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    layout = _BY_ALGORITHM.get(quantization["quant_algo"])
    rows, columns = shape
    if layout is None or excluded(module, quantization):
        yield module + ".weight", (dtype, shape)
        return
    yield module + ".weight", (layout.weight, (rows // layout.packing, columns))
    scales: dict[str, tuple[int, ...]]
    scales = {"tensor": (1,), "row": (rows,), "group": (rows, columns // GROUP)}
    yield module + ".weights_scaling_factor", ("F32", scales[layout.scale])
    if layout.inputs_scaled:
        yield module + ".activation_scaling_factor", ("F32", (1,))
    if layout.second_scale:
        yield module + ".weights_scaling_factor_2", ("F32", (1,))
    if layout.prescaled:
        yield module + ".prequant_scaling_factor", (dtype, (columns,))


def _unified(config: Json, quantization: Json) -> Expected:
    """Tensors of a unified HF checkpoint."""
    dtype = _TYPES[config.get("dtype") or config["torch_dtype"]]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    q, kv = heads * head, config["num_key_value_heads"] * head
    ffn = config["intermediate_size"]
    vocabulary = (dtype, (config["vocab_size"], hidden))
    expected: Expected = {"model.embed_tokens.weight": vocabulary}
    expected["model.norm.weight"] = (dtype, (hidden,))
    if not config.get("tie_word_embeddings"):
        expected["lm_head.weight"] = vocabulary
    linears = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{layer}{norm}.weight"] = (dtype, (hidden,))
        if quantization["kv_cache_quant_algo"] == "FP8":
            expected[layer + "self_attn.k_proj.k_scale"] = ("F32", ())
            expected[layer + "self_attn.v_proj.v_scale"] = ("F32", ())
        for name, shape in linears.items():
            expected |= _unified_linear(layer + name, shape, dtype, quantization)
            if config["model_type"] == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                expected[layer + name + ".bias"] = (dtype, shape[:1])
    return expected


def _unified_linear(
    module: str, shape: tuple[int, int], dtype: str, quantization: Json
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    layout = _BY_ALGORITHM.get(quantization["quant_algo"])
    rows, columns = shape
    if layout is None or excluded(module, quantization):
        yield module + ".weight", (dtype, shape)
        return
    yield module + ".weight", (layout.unified_weight, (rows // layout.packing, columns))
    scales: dict[str, tuple[int, ...]]
    scales = {"tensor": (), "row": (rows,), "group": (rows, columns // GROUP)}
    yield module + ".weight_scale", ("F32", scales[layout.scale])
    if layout.inputs_scaled:
        yield module + ".input_scale", ("F32", ())
    if layout.second_scale:
        yield module + ".weight_scale_2", ("F32", ())
    # AWQ's vector is folded into the norm in front, where there is one.
    after_norm = not module.endswith(("o_proj", "down_proj"))
    if layout.prescaled and not (layout.scale == "group" and after_norm):
        yield module + ".pre_quant_scale", (dtype, (columns,))


def _compare(place: Path, found: Header, expected: Expected) -> list[str]:
    problems = [f"{place.name}: {name} is missing" for name in sorted(expected.keys() - found)]
    surplus = sorted(found.keys() - expected)
    problems += [f"{place.name}: {name} is not expected" for name in surplus]
    for name in sorted(expected.keys() & found.keys()):
        if found[name] != expected[name]:
            problems.append(
                f"{place.name}: {name} is {_words(found[name])}, must be {_words(expected[name])}"
            )
    return problems


def _words(tensor: tuple[str, tuple[int, ...]]) -> str:
    return f"{tensor[0]} {list(tensor[1])}"
