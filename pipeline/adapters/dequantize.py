"""The weights that an exported folder stands for: unpacked, scaled, re-joined, in HF's names.

    with QnemoWeights(folder, shape) as ours, WeightReader(source) as theirs:
        compare({"qnemo": ours}, theirs, shape)

Written from the formats' descriptions and not with ModelOpt, so that comparing the result with the
source proves the files. Every linear weight is given as it acts on the layer's input: times the
scale vector of AWQ or SmoothQuant. Tensors are read one by one, on the GPU if there is one. Knows
nothing of configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.checkpoints import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Shape,
    tensor_shapes,
    weight_files,
)
from pipeline.layouts import BY_ALGORITHM, Layout

if TYPE_CHECKING:
    import torch

    from pipeline.adapters.hf import WeightReader

# The sixteen values of FP4 E2M1 by their bits: sign, two of exponent, one of mantissa (OCP
# Microscaling Formats 1.0, section 5.3.3).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

_NORMS = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_layernorm",
}
# HF name → qnemo name, and the dimension on which ranks share it. TensorRT-LLM's fc is HF's gate.
_LINEARS = {
    "self_attn.o_proj": ("attention.dense", 1),
    "mlp.gate_proj": ("mlp.fc", 0),
    "mlp.up_proj": ("mlp.gate", 0),
    "mlp.down_proj": ("mlp.proj", 1),
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# Linear layers whose input is a norm's output: name → norm.
_AFTER = {
    **dict.fromkeys(_FUSED, "input_layernorm"),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
}
_BLOCK = 2**22  # elements that are compared at once, in float64
_READERS = 4  # tensors on their way to a GPU at once: one thread does not keep it busy


class Weights(Protocol):
    """What a folder stands for, by HF's names."""

    def tensor(self, name: str) -> torch.Tensor | None:
        """A weight; None if it stands for nothing of its own."""


class QnemoWeights:
    """Of all ranks of a qnemo folder."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        config = json.loads((folder / "config.json").read_text())
        self._folder, self._shape = folder, shape
        self._layout = BY_ALGORITHM.get(config["quantization"]["quant_algo"])
        self._tp, self._pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
        q, kv = (n * shape.head_dim // self._tp for n in (shape.heads, shape.kv_heads))
        # Each rank holds its share of the queries, then of the keys, then of the values.
        self._rows = dict(
            zip(_FUSED, (slice(0, q), slice(q, q + kv), slice(q + kv, q + 2 * kv)), strict=True)
        )
        self._stack = ExitStack()

    def __enter__(self) -> QnemoWeights:
        from safetensors import safe_open

        self._ranks = [
            self._stack.enter_context(
                safe_open(self._folder / f"rank{rank}.safetensors", framework="pt")
            )
            for rank in range(self._tp * self._pp)
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def tensor(self, name: str) -> torch.Tensor:
        import torch

        if name in (EMBEDDING, LM_HEAD):
            first = name == EMBEDDING
            files = self._ranks[: self._tp] if first else self._ranks[-self._tp :]
            theirs = "transformer.vocab_embedding.weight" if first else name
            return torch.cat([_on_device(f.get_tensor(theirs)) for f in files])[: self._shape.vocab]
        if name == FINAL_NORM:
            return _on_device(self._ranks[-1].get_tensor("transformer.ln_f.weight"))
        number, part, kind = _layer_name(name)
        stage, local = divmod(number, self._shape.layers // self._pp)
        files = self._ranks[stage * self._tp : (stage + 1) * self._tp]
        layer = f"transformer.layers.{local}."
        if part in _NORMS:
            return _on_device(files[0].get_tensor(f"{layer}{_NORMS[part]}.weight"))
        if part in _FUSED:
            module, dimension, rows = "attention.qkv", 0, self._rows[part]
        else:
            (module, dimension), rows = _LINEARS[part], slice(None)
        if kind == "bias":
            whole = [file.get_tensor(f"{layer}{module}.bias") for file in files]
            return _on_device(torch.cat([bias[rows] for bias in whole]))
        return torch.cat([self._linear(f, layer + module, rows) for f in files], dim=dimension)

    def _linear(self, file: Any, module: str, rows: slice) -> torch.Tensor:
        """Rows of a rank's part of a linear weight, [rows, in]."""
        if self._layout is None or f"{module}.weights_scaling_factor" not in file.keys():  # noqa: SIM118
            return _on_device(file.get_tensor(f"{module}.weight")[rows])

        def optional(wanted: bool, name: str) -> torch.Tensor | None:
            return _on_device(file.get_tensor(f"{module}.{name}")) if wanted else None

        scale = _on_device(file.get_tensor(f"{module}.weights_scaling_factor"))
        stored = file.get_tensor(f"{module}.weight")
        halved = self._layout.packed == "rows" and rows.stop is not None
        return dequantize(
            self._layout,
            _on_device(stored[slice(rows.start // 2, rows.stop // 2) if halved else rows]),
            scale if scale.numel() == 1 else scale[rows],
            optional(self._layout.second_scale, "weights_scaling_factor_2"),
            optional(self._layout.prescaled, "prequant_scaling_factor"),
        )


class UnifiedWeights:
    """Of a unified HF folder.

    AWQ's input scale lies in the norm in front of a layer: the source's norm is undone from the
    layers behind, and such a norm then stands for nothing of its own.
    """

    def __init__(self, folder: Path, source: WeightReader) -> None:
        from pipeline.adapters.hf import WeightReader

        quant_file = folder / "hf_quant_config.json"
        algorithm = (
            json.loads(quant_file.read_text())["quantization"]["quant_algo"]
            if quant_file.is_file()
            else None
        )
        self._layout = BY_ALGORITHM.get(algorithm)
        self._in_norms = bool(self._layout and self._layout.group and self._layout.prescaled)
        self._names = {name for file in weight_files(folder) for name in tensor_shapes(file)}
        self._source, self._written = source, WeightReader(folder)

    def __enter__(self) -> UnifiedWeights:
        self._written.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._written.__exit__(*exception)

    def tensor(self, name: str) -> torch.Tensor | None:
        module = name.rpartition(".")[0]
        if name in (EMBEDDING, FINAL_NORM, LM_HEAD):
            return self._read(name)
        number, part, kind = _layer_name(name)
        layer = f"model.layers.{number}."
        if self._in_norms and part in _NORMS:
            behind = (f"{layer}{linear}.weight_scale" for linear, n in _AFTER.items() if n == part)
            return None if any(scale in self._names for scale in behind) else self._read(name)
        scale = self._optional(f"{module}.weight_scale")
        if self._layout is None or kind == "bias" or scale is None:
            return self._read(name)
        weight = dequantize(
            self._layout,
            self._read(name),
            scale,
            self._optional(f"{module}.weight_scale_2"),
            self._optional(f"{module}.pre_quant_scale"),
        )
        if self._in_norms and part in _AFTER:
            weight *= self._scale_in(f"{layer}{_AFTER[part]}.weight")
        return weight

    def _read(self, name: str) -> torch.Tensor:
        return _on_device(self._written.tensor(name))

    def _optional(self, name: str) -> torch.Tensor | None:
        return self._read(name) if name in self._names else None

    def _scale_in(self, norm: str) -> torch.Tensor:
        """What a norm multiplies beyond the source's, [hidden]."""
        import torch

        theirs, ours = self._read(norm).float(), _on_device(self._source.tensor(norm)).float()
        return torch.where(ours == 0, 1.0, theirs / ours)


def dequantize(
    layout: Layout,
    stored: torch.Tensor,
    scale: torch.Tensor,
    second: torch.Tensor | None,
    prescale: torch.Tensor | None,
) -> torch.Tensor:
    """weight[o, i] = value[o, i] * scale * prescale[i], [out, in] float32.

    stored: of two neighbours that share a byte the first, of even number, is in the low half.
    scale: one number, one a row [out], or one a group [out, in / group]. Where it is FP8, it has a
        scale itself, `second`; where not, `second` tells how the weights were rounded once more.
    """
    import torch

    if layout.packed == "columns":
        byte = torch.arange(256, device=stored.device)
        value = torch.tensor(_E2M1, device=stored.device)
        pairs = value[torch.stack([byte & 15, byte >> 4], dim=1)]  # byte → two values
        weight = torch.nn.functional.embedding(stored.int(), pairs).flatten(1)
    elif layout.packed == "rows":
        packed = stored.view(torch.uint8).to(torch.int16)
        halves = torch.stack([packed & 15, packed >> 4], dim=1)  # [out / 2, 2, in]
        weight = ((halves ^ 8) - 8).flatten(0, 1).float()  # two's complement of four bits
    else:
        weight = stored.float()
    scale = scale.float()
    if layout.scale_type == "F8_E4M3" and second is not None:
        scale = scale * second
    if layout.group:
        weight.unflatten(1, (-1, layout.group)).mul_(scale.unsqueeze(-1))
    else:
        weight *= scale.reshape(-1, 1)  # a single number spreads over all rows
    return weight if prescale is None else weight.mul_(prescale.float())


def compare(
    forms: Mapping[str, Weights], source: WeightReader, shape: Shape
) -> dict[str, dict[str, dict[str, float]]]:
    """For each form and each weight that it stands for: `difference` from the source's."""
    import torch

    def row(name: str) -> dict[str, dict[str, float]]:
        theirs = _on_device(source.tensor(name))
        found = {form: weights.tensor(name) for form, weights in forms.items()}
        return {form: difference(ours, theirs) for form, ours in found.items() if ours is not None}

    names = [name for name, _ in shape.tensors()]
    tables: dict[str, dict[str, dict[str, float]]] = {form: {} for form in forms}
    with ThreadPoolExecutor(_READERS if torch.cuda.is_available() else 1) as pool:
        for name, figures in zip(names, pool.map(row, names), strict=True):
            for form, figure in figures.items():
                tables[form][name] = figure
    return tables


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Cosine of two tensors, and |ours - theirs| / |theirs|."""
    import torch

    sums = torch.zeros(4, dtype=torch.float64, device=theirs.device)
    blocks = (tensor.flatten().split(_BLOCK) for tensor in (ours, theirs))
    for a, b in zip(*blocks, strict=True):
        x, y = a.double(), b.double()
        sums += torch.stack([x @ y, x @ x, y @ y, (x - y).square_().sum()])
    dot, ours_square, theirs_square, square = sums.tolist()
    # A tensor of zeros, as a bias can be, has no direction: only its being copied counts.
    if square == 0:
        return {"cosine": 1.0, "error": 0.0}
    if not (ours_square and theirs_square):
        return {"cosine": 0.0, "error": math.inf}
    sizes = math.sqrt(ours_square) * math.sqrt(theirs_square)
    return {"cosine": dot / sizes, "error": math.sqrt(square / theirs_square)}


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.cuda() if torch.cuda.is_available() else tensor


def _layer_name(name: str) -> tuple[int, str, str]:
    """model.layers.<number>.<part>.<kind>, of a tensor in a layer."""
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return int(number), part, kind
