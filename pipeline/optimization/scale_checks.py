"""The scales of inputs and of the key-value cache that exported folders hold, against calibration.

    check_scales(quantized, {"qnemo": qnemo, "hf": unified}, shape, "fp8")     # wrong ones in words

A scale is the largest value that calibration saw over the largest that the format has. Layers that
a runtime joins have one, the largest of theirs. Written from the formats' descriptions and read
from the quantizers' state, so that no code is on both sides.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open

from pipeline.config.quantize import QuantizationFormat
from pipeline.models.architecture import Shape
from pipeline.models.files import weight_files
from pipeline.optimization.formats import JOINED

# Largest values: E4M3's, int8's, and E2M1's 6 with block scales in E4M3 (OCP Microscaling 1.0).
_LARGEST: Mapping[QuantizationFormat, float] = {
    "fp8": 448.0,
    "w4a8_awq": 448.0,
    "int8_sq": 127.0,
    "nvfp4": 448.0 * 6,
}
_CACHE_LARGEST = 448.0
_STATE = "_quantizer._amax"
# qnemo's names of layers → HF's, whose inputs share a scale.
_QNEMO = {
    "attention.qkv": JOINED[0],
    "attention.dense": ("o_proj",),
    "mlp.fc": ("gate_proj",),
    "mlp.gate": ("up_proj",),
    "mlp.proj": ("down_proj",),
}
_BLOCKS = {"attention": "self_attn", "mlp": "mlp"}
_TOLERANCE = 1e-3  # relative: both are float32
Scales = Mapping[str, float]


def check_scales(
    quantized: Path, folders: Mapping[str, Path], shape: Shape, format: QuantizationFormat
) -> list[str]:
    """Scales in the folders that calibration does not give, in words.

    quantized: folder of the format as modelopt.save left it. folders: qnemo and hf.
    """
    largest = _numbers(quantized, _STATE)
    problems = []
    for form, read in (("qnemo", _of_qnemo), ("hf", _of_unified)):
        for name, found, quantizers in read(folders[form], shape):
            seen = max((largest[q] for q in quantizers if q in largest), default=0.0)
            if quantizers[0].endswith("_bmm"):
                # A cache's scale is 1 at least: E4M3 holds smaller values as they are.
                expected = max(1.0, seen / _CACHE_LARGEST)
            else:
                expected = seen / _LARGEST.get(format, math.inf)
            if not math.isclose(found, expected, rel_tol=_TOLERANCE):
                problems.append(
                    f"{form}: {name} is {found:.6g}, and calibration gives {expected:.6g}"
                )
    return problems


def _of_qnemo(folder: Path, shape: Shape) -> Iterator[tuple[str, float, list[str]]]:
    """Each scale: its name, its value, and the quantizers that it stands for, by HF's layers."""
    mapping = json.loads((folder / "config.json").read_text())["mapping"]
    for file in sorted(folder.glob("rank*.safetensors")):
        stage = int(file.stem.removeprefix("rank")) // mapping["tp_size"]
        first = stage * shape.layers // mapping["pp_size"]
        for name, value in _numbers(file, ".activation_scaling_factor").items():
            number, layer = _layer(name)
            block = f"model.layers.{first + number}." + _BLOCKS[layer.partition(".")[0]]
            yield f"{file.name} {name}", value, [f"{block}.{p}.input" for p in _QNEMO[layer]]
        for name, value in _numbers(file, "_cache_scaling_factor").items():
            number, layer = _layer(name)
            kinds = layer.removeprefix("attention.")  # k, v or kv
            attention = f"model.layers.{first + number}.self_attn"
            yield f"{file.name} {name}", value, [f"{attention}.{kind}_bmm" for kind in kinds]


def _of_unified(folder: Path, shape: Shape) -> Iterator[tuple[str, float, list[str]]]:
    for name, value in _numbers(folder, ".input_scale").items():
        block, _, part = name.rpartition(".")
        together = next((names for names in JOINED if part in names), (part,))
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
