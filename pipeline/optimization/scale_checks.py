"""Compares the scales of inputs and of the key-value cache in exported folders with calibration.

    check_scales(quantized, {"qnemo": qnemo, "hf": unified}, shape, "fp8")     # wrong ones in words

A scale is the largest value that calibration saw, divided by the largest that the format has.
Layers that a runtime joins share one, the largest of theirs. The expected scales are computed from
the formats' descriptions and the quantizers' state, so that both sides share no code.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open

from pipeline.models.architecture import Shape
from pipeline.models.files import weight_files
from pipeline.optimization.formats import E4M3_LARGEST, FORMATS

_STATE = "_quantizer._amax"
_TOLERANCE = 1e-3  # relative: both are float32
Scales = Mapping[str, float]


def check_scales(
    quantized: Path, folders: Mapping[str, Path], shape: Shape, format: str
) -> list[str]:
    """Scales in the folders that differ from the calibrated ones, in words.

    quantized: folder of the format, as ptq.save wrote it. folders: qnemo, hf or both.
    """
    largest, storage = _numbers(quantized, _STATE), FORMATS[format].storage
    largest_input = (storage and storage.largest_input) or math.inf
    readers = {"qnemo": _of_qnemo, "hf": _of_unified}
    problems = []
    for form, folder in folders.items():
        for name, found, quantizers in readers[form](folder, shape):
            seen = max((largest[q] for q in quantizers if q in largest), default=0.0)
            if quantizers[0].endswith("_bmm"):
                # A cache's scale is at least 1: E4M3 holds smaller values without scaling.
                expected = max(1.0, seen / E4M3_LARGEST)
            else:
                expected = seen / largest_input
            if not math.isclose(found, expected, rel_tol=_TOLERANCE):
                problems.append(
                    f"{form}: {name} is {found:.6g}, and calibration gives {expected:.6g}"
                )
    return problems


def _of_qnemo(folder: Path, shape: Shape) -> Iterator[tuple[str, float, list[str]]]:
    """Each scale: its name, its value, and the quantizers that it stands for, by HF's layers."""
    mapping = json.loads((folder / "config.json").read_text())["mapping"]
    parts = {name: [p.hf for p in parts] for name, _, parts in shape.layer.qnemo_linears()}
    for file in sorted(folder.glob("rank*.safetensors")):
        stage = int(file.stem.removeprefix("rank")) // mapping["tp_size"]
        first = stage * shape.layers // mapping["pp_size"]
        for name, value in _numbers(file, ".activation_scaling_factor").items():
            number, layer = _layer(name)
            block = f"model.layers.{first + number}."
            yield f"{file.name} {name}", value, [f"{block}{hf}.input" for hf in parts[layer]]
        for name, value in _numbers(file, "_cache_scaling_factor").items():
            number, layer = _layer(name)
            kinds = layer.removeprefix("attention.")  # k, v or kv
            attention = f"model.layers.{first + number}.self_attn"
            yield f"{file.name} {name}", value, [f"{attention}.{kind}_bmm" for kind in kinds]


def _of_unified(folder: Path, shape: Shape) -> Iterator[tuple[str, float, list[str]]]:
    for name, value in _numbers(folder, ".input_scale").items():
        block, _, part = name.rpartition(".")
        together = next((names for names in shape.layer.joined if part in names), (part,))
        yield f"{name}.input_scale", value, [f"{block}.{p}.input" for p in together]
    for kind in "kv":
        for name, value in _numbers(folder, f".{kind}_proj.{kind}_scale").items():
            yield f"{name}.{kind}_scale", value, [f"{name}.{kind}_bmm"]


def _numbers(place: Path, ending: str) -> Scales:
    """Single numbers in a file or folder whose names end so, by the rest of the name."""
    found = {}
    for file in weight_files(place) if place.is_dir() else [place]:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith(ending):
                    tensor = tensors.get_tensor(name)
                    if tensor.numel() == 1:
                        found[name.removesuffix(ending)] = float(tensor)
    return found


def _layer(name: str) -> tuple[int, str]:
    """transformer.layers.<number>.<layer>."""
    number, _, layer = name.removeprefix("transformer.layers.").partition(".")
    return int(number), layer
