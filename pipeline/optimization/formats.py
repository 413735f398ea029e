"""The weight formats: everything that the project knows of each, in one record.

    FORMATS["nvfp4"].storage.group                     # weights that share a scale
    FORMATS.add(Format(name="int8_wo", ...))           # one more, before the command runs

Whoever needs a fact of a format asks its record: calibration, export and its proofs, the gate, the
planner, the engines, `stage=doctor`. No record imports ModelOpt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.core.tables import Table

E4M3_LARGEST = 448.0
E2M1_LARGEST = 6.0

Form = Literal["qnemo", "hf"]
Capability = tuple[int, int]  # NVIDIA's compute capability


@dataclass(frozen=True)
class Storage:
    """How a format stores the matrix of a linear layer, [out, in].

    algorithm: `quant_algo` in the configuration of both exported folders.
    number: what a weight is rounded to.
    weight, unified_weight: safetensors type in qnemo and in the unified HF checkpoint.
    packed: which neighbours share a byte: none, two "rows" or two "columns". The first of two is in
        the low half.
    scale: one weight scale per "tensor", per "row" or per "group" of columns of a row.
    group: columns in a group; 0 without groups.
    scale_type: safetensors type of the weight scales.
    second_scale: the scales, or the rounded weights, have a scale of their own, one number.
    largest_input: the largest value that a quantized activation can have; None: activations are
        not quantized.
    prescaled: inputs are first multiplied by a vector (AWQ, SmoothQuant).
    modelopt_algorithm: `quant_algo` as ModelOpt writes it, where it is not `algorithm`.
    """

    algorithm: str
    number: Literal["e4m3", "e2m1", "int8", "int4"]
    weight: str
    unified_weight: str
    packed: Literal["", "rows", "columns"] = ""
    scale: Literal["tensor", "row", "group"] = "tensor"
    group: int = 0
    scale_type: str = "F32"
    second_scale: bool = False
    largest_input: float | None = None
    prescaled: bool = False
    modelopt_algorithm: str = ""

    @property
    def bits(self) -> int:
        """Bits of a weight without its scales."""
        return 4 if self.number in ("int4", "e2m1") else 8

    def stored_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the weight tensor for a matrix of these sizes."""
        if self.packed == "rows":
            return rows // 2, columns
        return rows, columns // 2 if self.packed else columns

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of the weight scales; () for a single number."""
        if self.scale == "group":
            return rows, columns // self.group
        return (rows,) if self.scale == "row" else ()

    def facts(self) -> dict[str, Any]:
        """What the configuration says beside `quant_algo`."""
        if not self.group:
            return {}
        zero_point = {"has_zero_point": False, "pre_quant_scale": True} if self.prescaled else {}
        return {"group_size": self.group, **zero_point}


@dataclass(frozen=True)
class Copied:
    """How far a weight that is not quantized may be from its source: it is copied, at most rounded
    to bfloat16, whose eight bits of mantissa change a number by 2**-9 of itself at most."""

    error: float = 2**-8
    scale: float = 2**-8


COPIED = Copied()


def most_excess(storage: Storage, rounding: float) -> float:
    """How much a quantized weight may lack beyond what rounding costs (dequantize.beyond_rounding).

    It is measured against rounding that is done anew, so it needs no figure of a format or a model.
    What is left has two causes. Input scales (AWQ, SmoothQuant), and the norms that they are folded
    into, are stored in bfloat16, which is up to 0.004 off each; FP8 layers that are joined share a
    scale. And near the middle of two values, such a scale decides for the other one, which adds a
    small part of the rounding (tests/unit/optimization/test_dequantize.py, on random weights,
    weights with heavy tails and with outliers). A scale that is 10 % off is beyond it in any
    format. Scales in FP8 (NVFP4) have three bits of mantissa, and are rounded otherwise where
    joined layers share the number that they are scaled by: 0.034 was seen.
    """
    return math.hypot(0.05 if storage.scale_type == "F8_E4M3" else 0.02, 0.15 * rounding)


@dataclass(frozen=True)
class Format:
    """A weight format.

    name: as settings give it. title: as people read it.
    modelopt: ModelOpt's configuration, by its name in `modelopt.torch.quantization` or written
        out; None: nothing is quantized.
    storage: how linear layers are stored; None: in the model's own type.
    bytes_per_weight: of the linear layers, scales included, as an engine holds them.
    max_drop: how much worse than the tuned model the exported format may be by the main metric,
        where the gate's condition has no margin of its own.
    keeps_weights: calibration only finds largest values, so the source's weights stay as they are.
    scales_when_packed: the scales of weights are computed while they are packed, and are no part of
        the calibrated state.
    vocabulary_multiple: ModelOpt pads the vocabulary to a multiple of this with tokens that could
        then be generated, so that other vocabularies are refused.
    calibrates_on: compute capability of the GPU that calibration needs; None: a CPU is enough.
    computes_on: compute capability of the GPUs on which engines compute in this format; None: any.
    forms: what export writes: "qnemo", a TensorRT-LLM checkpoint with a tokenizer; "hf",
        ModelOpt's unified HF checkpoint.
    vllm: vLLM's name for this quantization; None: vLLM cannot load it.
    trtllm_loads_hf: TensorRT-LLM's PyTorch backend loads the unified HF checkpoint.
    gemm_plugin: whether `trtllm-build` should use its GEMM plugin. Where every product of a linear
        layer has a kernel of its own, the plugin would slow it down.
    """

    name: str
    title: str
    modelopt: str | Mapping[str, Any] | None
    storage: Storage | None
    bytes_per_weight: float
    max_drop: float
    keeps_weights: bool = False
    scales_when_packed: bool = False
    vocabulary_multiple: int = 1
    calibrates_on: Capability | None = None
    computes_on: Capability | None = None
    forms: tuple[Form, ...] = ("qnemo", "hf")
    vllm: str | None = None
    trtllm_loads_hf: bool = False
    gemm_plugin: bool = True

    @property
    def quantized(self) -> bool:
        return self.storage is not None

    @property
    def algorithm(self) -> str | None:
        """`quant_algo` in exported folders; None where nothing is quantized."""
        return self.storage.algorithm if self.storage else None

    @property
    def group(self) -> int:
        """Columns that share a scale, by which a rank's share must divide; 1 without groups."""
        return self.storage.group if self.storage and self.storage.group else 1

    @property
    def calibrated_bits(self) -> float:
        """Bits of a packed weight beside the values in the calibrated state."""
        if self.storage is None or self.scales_when_packed:
            return 8 * self.bytes_per_weight
        return self.storage.bits


# Best for serving first, as NIM orders precisions (engines/profile.py).
FORMATS: Table[Format] = Table(
    "weight format",
    Format(
        name="fp8",
        title="FP8",
        modelopt="FP8_DEFAULT_CFG",
        storage=Storage("FP8", "e4m3", "F8_E4M3", "F8_E4M3", largest_input=E4M3_LARGEST),
        bytes_per_weight=1.0,
        max_drop=0.02,
        keeps_weights=True,
        computes_on=(8, 9),
        vllm="modelopt",
        trtllm_loads_hf=True,
        gemm_plugin=False,
    ),
    Format(
        name="int8_sq",
        title="INT8 SmoothQuant",
        modelopt="INT8_SMOOTHQUANT_CFG",
        storage=Storage(
            "W8A8_SQ_PER_CHANNEL",
            "int8",
            "I8",
            "I8",
            scale="row",
            largest_input=127.0,
            prescaled=True,
        ),
        bytes_per_weight=1.0,
        max_drop=0.02,
        gemm_plugin=False,
    ),
    Format(
        name="nvfp4",
        title="NVFP4",
        modelopt="NVFP4_DEFAULT_CFG",
        storage=Storage(
            "NVFP4",
            "e2m1",
            "U8",
            "U8",
            packed="columns",
            scale="group",
            group=16,
            scale_type="F8_E4M3",
            second_scale=True,
            largest_input=E4M3_LARGEST * E2M1_LARGEST,
        ),
        bytes_per_weight=0.5 + 1 / 16,  # an FP8 scale for 16 weights
        max_drop=0.05,
        keeps_weights=True,
        scales_when_packed=True,
        calibrates_on=(8, 9),
        computes_on=(10, 0),
        vllm="modelopt_fp4",
        trtllm_loads_hf=True,
    ),
    Format(
        name="int4_awq",
        title="INT4 AWQ",
        modelopt="INT4_AWQ_CFG",
        storage=Storage(
            "W4A16_AWQ", "int4", "I8", "U8", packed="rows", scale="group", group=128, prescaled=True
        ),
        bytes_per_weight=0.5 + 2 / 128,  # a float16 scale for 128 weights
        max_drop=0.05,
        vocabulary_multiple=64,
    ),
    Format(
        name="w4a8_awq",
        title="W4A8 AWQ",
        modelopt="W4A8_AWQ_BETA_CFG",
        storage=Storage(
            "W4A8_AWQ",
            "int4",
            "I8",
            "U8",
            packed="rows",
            scale="group",
            group=128,
            second_scale=True,
            largest_input=E4M3_LARGEST,
            prescaled=True,
        ),
        bytes_per_weight=0.5 + 2 / 128,
        max_drop=0.05,
        vocabulary_multiple=64,
    ),
    Format(
        name="none",
        title="unquantized",
        modelopt=None,
        storage=None,
        bytes_per_weight=2.0,
        max_drop=0.0,
        keeps_weights=True,
    ),
)


def quantized_formats() -> list[Format]:
    """All but "none"."""
    return [format for format in FORMATS.values() if format.quantized]


def format_of(algorithm: str | None) -> Format | None:
    """The format that an exported folder names in `quant_algo`; None: it is not known."""
    return next((f for f in FORMATS.values() if f.algorithm == algorithm), None)


def storage_of(algorithm: str | None) -> Storage | None:
    """How linear layers of a `quant_algo` are stored; None: as they are."""
    format = format_of(algorithm)
    return format.storage if format else None


def without_groups() -> str:
    """Formats for any sizes that a CPU calibrates, as words of an error message."""
    names = [f.name for f in quantized_formats() if f.group == 1 and not f.calibrates_on]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def exported_forms(format: str, no_qnemo: str | None) -> tuple[Form, ...]:
    """What export writes of a model. no_qnemo: why it has no TensorRT-LLM checkpoint, if so."""
    forms = FORMATS[format].forms
    return forms if no_qnemo is None else tuple(form for form in forms if form != "qnemo")
