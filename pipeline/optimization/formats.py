"""How each format's linear layers are stored, and how tensors are held against what they must be.

The rules of the two folders that export writes are qnemo's and unified_hf's; both read JSON and
safetensors headers, no weights. Knows no vendor's library.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from pipeline.config.quantize import QuantizationFormat

Json = Mapping[str, Any]
Tensor = tuple[str, tuple[int, ...]]  # safetensors type, shape
Header = Mapping[str, Tensor]

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
# Layers that runtimes join into one, by HF's names.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # torch's name → safetensors'


@dataclass(frozen=True)
class Layout:
    """How a format stores a linear layer's matrix, [out, in].

    algorithm: quant_algo in the configuration.
    weight, unified_weight: safetensors type in qnemo and in the unified HF checkpoint.
    packed: which neighbours share a byte: none, two "rows" or two "columns".
    scale: one weight scale a "tensor", a "row" or a "group" of columns of a row.
    group: columns in a group; 0 without groups.
    scale_type: safetensors type of the weight scales.
    second_scale: the scales, or the rounded weights, have a scale of their own, one number.
    inputs_scaled: activations are quantized. prescaled: inputs are multiplied by a vector before.
    """

    algorithm: str
    weight: str
    unified_weight: str
    packed: Literal["", "rows", "columns"] = ""
    scale: Literal["tensor", "row", "group"] = "tensor"
    group: int = 0
    scale_type: str = "F32"
    second_scale: bool = False
    inputs_scaled: bool = True
    prescaled: bool = False

    def stored_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Of the weight tensor for a matrix of these sizes."""
        if self.packed == "rows":
            return rows // 2, columns
        return rows, columns // 2 if self.packed else columns

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Of the weight scales; () for a single number."""
        if self.scale == "group":
            return rows, columns // self.group
        return (rows,) if self.scale == "row" else ()

    def facts(self) -> dict[str, Any]:
        """What the configuration says beside quant_algo."""
        if not self.group:
            return {}
        zero_point = {"has_zero_point": False, "pre_quant_scale": True} if self.prescaled else {}
        return {"group_size": self.group, **zero_point}


LAYOUTS: Mapping[QuantizationFormat, Layout] = {
    "fp8": Layout("FP8", "F8_E4M3", "F8_E4M3"),
    "int8_sq": Layout("W8A8_SQ_PER_CHANNEL", "I8", "I8", scale="row", prescaled=True),
    "int4_awq": Layout(
        "W4A16_AWQ",
        "I8",
        "U8",
        packed="rows",
        scale="group",
        group=128,
        inputs_scaled=False,
        prescaled=True,
    ),
    "w4a8_awq": Layout(
        "W4A8_AWQ",
        "I8",
        "U8",
        packed="rows",
        scale="group",
        group=128,
        second_scale=True,
        prescaled=True,
    ),
    "nvfp4": Layout(
        "NVFP4",
        "U8",
        "U8",
        packed="columns",
        scale="group",
        group=16,
        scale_type="F8_E4M3",
        second_scale=True,
    ),
}
BY_ALGORITHM: Mapping[str | None, Layout] = {
    layout.algorithm: layout for layout in LAYOUTS.values()
}


def group_of(format: QuantizationFormat) -> int:
    """Columns that share a scale, by which a rank's share must divide; 1 without groups."""
    layout = LAYOUTS.get(format)
    return layout.group if layout and layout.group else 1


def read_header(file: Path) -> dict[str, Tensor]:
    """Type and shape of each tensor in a safetensors file."""
    with safe_open(file, framework="np") as tensors:
        parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def excluded(module: str, quantization: Json) -> bool:
    """Whether the configuration leaves a module as it is."""
    return any(fnmatch.fnmatch(module, p) for p in quantization.get("exclude_modules") or ())


def layout_of(module: str, quantization: Json) -> Layout | None:
    """How a module is stored; None if it is not quantized."""
    layout = BY_ALGORITHM.get(quantization["quant_algo"])
    return None if layout is None or excluded(module, quantization) else layout


def check_algorithm(quantization: Json, format: QuantizationFormat) -> list[str]:
    """Broken rules of the quantization section that both folders have."""
    algorithm, problems = quantization["quant_algo"], []
    if quantization["kv_cache_quant_algo"] not in (None, "FP8"):
        problems.append(f"kv_cache_quant_algo {quantization['kv_cache_quant_algo']!r} is unknown")
    layout = LAYOUTS.get(format)
    wanted = layout.algorithm if layout else None
    if algorithm != wanted:
        problems.append(f"quant_algo is {algorithm!r}, must be {wanted!r} for {format}")
    if algorithm not in BY_ALGORITHM:
        return problems
    if not excluded("lm_head", quantization):
        problems.append("exclude_modules does not name lm_head, which is not quantized")
    for key, value in BY_ALGORITHM[algorithm].facts().items():
        if quantization.get(key) != value:
            problems.append(f"{key} is {quantization.get(key)!r}, must be {value!r}")
    return problems


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    return [f"{name} is missing" for name in names if not (folder / name).is_file()]


def compare(place: str, found: Header, expected: Header) -> list[str]:
    """Tensors of a file or folder that are missing, not expected, or of another type or shape."""
    problems = [f"{place}: {name} is missing" for name in sorted(expected.keys() - found.keys())]
    surplus = sorted(found.keys() - expected.keys())
    problems += [f"{place}: {name} is not expected" for name in surplus]
    for name in sorted(expected.keys() & found.keys()):
        if found[name] != expected[name]:
            problems.append(
                f"{place}: {name} is {_words(found[name])}, must be {_words(expected[name])}"
            )
    return problems


def _words(tensor: Tensor) -> str:
    return f"{tensor[0]} {list(tensor[1])}"
