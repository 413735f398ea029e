"""What the rules of both exported folders share: qnemo_layout and unified_hf_layout use it.

Reads JSON and the headers of safetensors files, no weights. Knows no vendor's library.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipeline.optimization.formats import FORMATS, Storage, storage_of

Json = Mapping[str, Any]
Tensor = tuple[str, tuple[int, ...]]  # safetensors type, shape
Header = Mapping[str, Tensor]

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # torch's name → safetensors'


def read_header(file: Path) -> dict[str, Tensor]:
    """Type and shape of each tensor in a safetensors file."""
    with safe_open(file, framework="np") as tensors:
        parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def excluded(module: str, quantization: Json) -> bool:
    """Whether the configuration excludes a module from quantization."""
    return any(fnmatch.fnmatch(module, p) for p in quantization.get("exclude_modules") or ())


def storage_in(module: str, quantization: Json) -> Storage | None:
    """How a module is stored; None if it is not quantized."""
    return None if excluded(module, quantization) else storage_of(quantization["quant_algo"])


def check_algorithm(quantization: Json, format: str) -> list[str]:
    """Broken rules of the quantization section that both folders have."""
    algorithm, problems = quantization["quant_algo"], []
    if quantization["kv_cache_quant_algo"] not in (None, "FP8"):
        problems.append(f"kv_cache_quant_algo {quantization['kv_cache_quant_algo']!r} is unknown")
    wanted = FORMATS[format].algorithm
    if algorithm != wanted:
        problems.append(f"quant_algo is {algorithm!r}, must be {wanted!r} for {format}")
    storage = storage_of(algorithm)
    if storage is None:
        return problems
    if not excluded("lm_head", quantization):
        problems.append("exclude_modules does not name lm_head, which is not quantized")
    for key, value in storage.facts().items():
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
