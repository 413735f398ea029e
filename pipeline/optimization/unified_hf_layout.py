"""The rules of ModelOpt's unified HF checkpoint: broken ones in words, none for a good folder.

    check_unified_hf(folder, "fp8", "llama")

From ModelOpt 0.37 (torch/export/unified_export_hf.py) and from how vLLM reads such a folder
(model_executor/layers/quantization/modelopt.py); TensorRT-LLM's PyTorch backend reads the same.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.core.errors import DataError
from pipeline.models.architecture import Shape, read_shape, shape_of
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

_SCALES = (".weight_scale", ".weight_scale_2", ".input_scale")


def check_unified_hf(folder: Path, format: str, family: str) -> list[str]:
    """Broken rules of a unified HF folder that should hold a format of a model family."""
    try:
        config = json.loads((folder / "config.json").read_text())
        problems = missing_files(folder, TOKENIZER)
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
        problems += check_algorithm(quantization, format)
        if claimed is not None:
            problems += _check_claim(claimed, quantization)
        header: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            header |= read_header(file)
        shape = _shape(folder)
        if shape.family != family:
            problems.append(f"config.json describes a model of {shape.family}, must be {family}")
        dtype = TYPES[config.get("dtype") or config["torch_dtype"]]
        problems += compare(folder.name, header, _expected(shape, dtype, quantization))
        problems += _check_joined(folder, shape.layer.joined)
    except DataError as error:
        return [str(error)]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return [f"{folder} cannot be read: {type(error).__name__} {error}"]
    return problems


def check_same(folder: Path, source: Path) -> list[str]:
    """Sizes, rotary embedding and the like in a unified folder's config.json that differ from the
    source model's."""
    try:
        ours, theirs = vars(_shape(folder)), vars(read_shape(source))
    except DataError as error:
        return [str(error)]
    return [
        f"config.json: {name} is {ours[name]!r}, the source has {value!r}"
        for name, value in theirs.items()
        if ours[name] != value
    ]


def _shape(folder: Path) -> Shape:
    """The sizes in a unified folder's config.json, quantized or not."""
    file = folder / "config.json"
    return shape_of(file, json.loads(file.read_text()), quantized=True)


def _check_claim(claimed: Json, quantization: Json) -> list[str]:
    """Compare config.json with hf_quant_config.json: runtimes read either."""
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


def _check_joined(folder: Path, joined: Sequence[Sequence[str]]) -> list[str]:
    """Layers that runtimes join must agree on the scales that are one number.

    vLLM takes the largest. It leaves NVFP4 weights as they were rounded with another scale
    (ModelOptNvFp4LinearMethod), and rounds FP8 weights a second time (requantize_with_max_scale).
    """
    scales: dict[str, float] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith(_SCALES) and not tensors.get_slice(name).get_shape():
                    scales[name] = float(tensors.get_tensor(name))
    problems = []
    for block in sorted({name.rsplit(".", 2)[0] for name in scales}):
        for layers, scale in itertools.product(joined, _SCALES):
            names = [f"{block}.{layer}{scale}" for layer in layers]
            if len({scales[name] for name in names if name in scales}) > 1:
                problems.append(
                    f"{block}: {scale[1:]} of {', '.join(layers)} differ, and runtimes join them"
                )
    return problems


def _expected(shape: Shape, dtype: str, quantization: Json) -> dict[str, Tensor]:
    """The folder's tensors."""
    expected: dict[str, Tensor] = {name: (dtype, size) for name, size in shape.tensors()}
    for number in range(shape.layers):
        layer = f"model.layers.{number}."
        if quantization["kv_cache_quant_algo"] == "FP8":
            expected[layer + "self_attn.k_proj.k_scale"] = ("F32", ())
            expected[layer + "self_attn.v_proj.v_scale"] = ("F32", ())
        for linear in shape.layer_at(number).linears:
            for part in linear.parts:
                size = (shape.rows(part.outputs), shape.size(linear.inputs))
                in_norm = linear.after is not None
                expected |= _linear(layer + part.hf, size, dtype, quantization, in_norm=in_norm)
    return expected


def _linear(
    module: str, shape: tuple[int, int], dtype: str, quantization: Json, *, in_norm: bool
) -> Iterator[tuple[str, Tensor]]:
    storage = storage_in(module, quantization)
    if storage is None:
        yield module + ".weight", (dtype, shape)
        return
    yield module + ".weight", (storage.unified_weight, storage.stored_shape(*shape))
    yield module + ".weight_scale", (storage.scale_type, storage.scale_shape(*shape))
    if storage.largest_input:
        yield module + ".input_scale", ("F32", ())
    if storage.second_scale:
        yield module + ".weight_scale_2", ("F32", ())
    # AWQ's vector is folded into the norm in front, where there is one.
    if storage.prescaled and not (storage.group and in_norm):
        yield module + ".pre_quant_scale", (dtype, (shape[1],))
