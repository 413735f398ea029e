"""Weights as exported folders hold them: unpacked, scaled, and compared with their source.

    dequantize(storage, stored, scale, second, None)               # [out, in] float32
    compare({"qnemo": ours, "hf": theirs}, source, shape)          # of exported_reader

Written from the formats' descriptions and not with ModelOpt, so that comparing the result with the
source proves the files. Tensors are read one by one, on the GPU if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.models.architecture import EMBEDDING, LM_HEAD, Shape
from pipeline.optimization.formats import E2M1_LARGEST, E4M3_LARGEST, Storage

if TYPE_CHECKING:
    import torch

    from pipeline.models.hf_model import WeightReader

# The sixteen values of FP4 E2M1 by their bits: sign, two of exponent, one of mantissa (OCP
# Microscaling Formats 1.0, section 5.3.3).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

# Elements that are compared at once, in float64: enough to fit a CPU's cache, or to fill a GPU.
_BLOCK = {"cpu": 2**16, "cuda": 2**24}
_READERS = 4  # threads that copy tensors to a GPU: a single one does not keep it busy


class Weights(Protocol):
    """The weights that a folder represents, by HF's names."""

    def tensor(self, name: str) -> torch.Tensor | None:
        """A weight; None if the folder has no such weight of its own."""

    def rounding(self, name: str) -> Rounding | None:
        """How a weight was rounded; None if it was copied."""


@dataclass(frozen=True)
class Rounding:
    """storage: the format. prescale: what unpacked weights are multiplied by, [in], or None."""

    storage: Storage
    prescale: torch.Tensor | None


def dequantize(
    storage: Storage,
    stored: torch.Tensor,
    scale: torch.Tensor,
    second: torch.Tensor | None,
    prescale: torch.Tensor | None,
) -> torch.Tensor:
    """weight[o, i] = value[o, i] * scale * prescale[i], [out, in] float32.

    stored: weights as the file holds them; `storage` says how they are packed.
    scale: one number, one per row [out], or one per group [out, in / group]. An FP8 scale has a
        scale itself, `second`. Otherwise `second` is the scale of a further rounding, and unused.
    """

    weight = _numbers(storage, stored)
    scale = scale.float()
    if storage.scale_type == "F8_E4M3" and second is not None:
        scale = scale * second
    if storage.group:
        weight.unflatten(1, (-1, storage.group)).mul_(scale.unsqueeze(-1))
    else:
        weight *= scale.reshape(-1, 1)  # a single number spreads over all rows
    return weight if prescale is None else weight.mul_(prescale.float())


def _numbers(storage: Storage, stored: torch.Tensor) -> torch.Tensor:
    """Stored weights as numbers before any scale, [out, in] float32."""
    import torch

    if not storage.packed:
        return stored.float()
    if storage.number == "e2m1":
        value = torch.tensor(_E2M1, device=stored.device)
    else:  # two's complement of four bits
        value = torch.tensor([(code ^ 8) - 8.0 for code in range(16)], device=stored.device)
    byte = torch.arange(256, device=stored.device)
    pairs = value[torch.stack([byte & 15, byte >> 4], dim=1)]  # byte → two values
    halves = torch.nn.functional.embedding(stored.view(torch.uint8).int(), pairs)
    if storage.packed == "columns":
        return halves.flatten(1)  # [out, in / 2, 2]
    return halves.transpose(1, 2).flatten(0, 1)  # [out / 2, 2, in]


def compare(
    forms: Mapping[str, Weights], source: WeightReader, shape: Shape
) -> dict[str, dict[str, dict[str, float]]]:
    """For each form and each of its weights: the `difference` from the source's weight, and
    `beyond_rounding` of a weight that was rounded."""
    import torch

    names = {name: name for name, _ in shape.tensors()}  # ours → the source's
    if shape.tied:
        names[LM_HEAD] = EMBEDDING  # which a form may hold apart

    def row(name: str) -> dict[str, dict[str, float]]:
        theirs = on_device(source.tensor(names[name]))
        figures = {}
        for form, weights in forms.items():
            ours = weights.tensor(name)
            if ours is not None:
                figures[form] = difference(ours, theirs)
                if how := weights.rounding(name):
                    figures[form] |= beyond_rounding(ours, theirs, how)
        return figures

    tables: dict[str, dict[str, dict[str, float]]] = {form: {} for form in forms}
    with ThreadPoolExecutor(_READERS if torch.cuda.is_available() else 1) as pool:
        for name, figures in zip(names, pool.map(row, names), strict=True):
            for form, figure in figures.items():
                tables[form][name] = figure
    return tables


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Cosine of two tensors, |ours - theirs| / |theirs|, and the factor that brings theirs closest
    to ours. The factor is 1 if scales are right, however coarse the rounding."""
    import torch

    sums = torch.zeros(4, dtype=torch.float64, device=theirs.device)
    block = _BLOCK[theirs.device.type]
    blocks = (tensor.flatten().split(block) for tensor in (ours, theirs))
    for a, b in zip(*blocks, strict=True):
        x, y = a.double(), b.double()
        sums += torch.stack([x @ y, x @ x, y @ y, (x - y).square_().sum()])
    dot, ours_square, theirs_square, square = sums.tolist()
    # A tensor of zeros, such as a bias, has no direction: it can only be equal or not.
    if square == 0:
        return {"cosine": 1.0, "error": 0.0, "scale": 1.0}
    if not (ours_square and theirs_square):
        return {"cosine": 0.0, "error": math.inf, "scale": 0.0}
    sizes = math.sqrt(ours_square) * math.sqrt(theirs_square)
    return {
        "cosine": dot / sizes,
        "error": math.sqrt(square / theirs_square),
        "scale": dot / theirs_square,
    }


def beyond_rounding(ours: torch.Tensor, theirs: torch.Tensor, how: Rounding) -> dict[str, float]:
    """What a written weight lacks beyond what rounding to its format costs, [out, in].

    rounding: relative error of theirs, rounded here with scales from its own largest values.
    excess: the largest sqrt(error² - rounding²) of a row, or of the whole matrix where it has one
        scale, relative to its norm. Rounding leaves about 0, whatever the weights are; a scale that
        is 5 % off gives 0.05, and a wrong order, sign or transposition gives 1 or more.
    """
    import torch

    storage = how.storage
    rows = max(2, _BLOCK[theirs.device.type] // theirs.shape[1] * 16)
    largest = theirs.abs().max()
    sums = []
    for a, b in zip(ours.split(rows), theirs.split(rows), strict=True):
        y = b.float()
        best = rounded(storage, y, how.prescale, largest.float())
        parts = torch.stack([(a.float() - y).square(), (best - y).square(), y.square()])
        sums.append(parts.double().sum(-1))
    per_row = torch.cat(sums, dim=1)
    if storage.scale == "tensor":
        per_row = per_row.sum(1, keepdim=True)
    error, least, size = per_row
    lost = (error - least).clamp(min=0)  # NaN stays NaN
    excess = torch.where(size > 0, lost / size, torch.where(lost > 0, math.inf, lost))
    total = float(size.sum())
    return {
        "rounding": math.sqrt(float(least.sum()) / total) if total else 0.0,
        "excess": math.sqrt(float(excess.max())),
    }


def rounded(
    storage: Storage,
    weight: torch.Tensor,
    prescale: torch.Tensor | None,
    largest: torch.Tensor,
) -> torch.Tensor:
    """Rows of a weight, [rows, in] float32, rounded with scales from their own largest values.

    largest: absolute value of the whole matrix. Formats that scale by it have no prescale.
    """
    import torch

    x = weight if prescale is None else weight / prescale
    blocks = x.unflatten(1, (-1, storage.group)) if storage.group else x.unsqueeze(1)
    top = {"e4m3": E4M3_LARGEST, "e2m1": E2M1_LARGEST, "int8": 127.0, "int4": 7.0}[storage.number]
    if storage.scale == "tensor":
        scale = (largest / top).reshape(1, 1, 1)
    else:
        scale = blocks.abs().amax(-1, keepdim=True) / top
    if storage.scale_type == "F8_E4M3":
        second = largest / (top * E4M3_LARGEST)
        scale = (scale / second).clamp(max=E4M3_LARGEST).to(torch.float8_e4m3fn).float() * second
    values = blocks / torch.where(scale > 0, scale, 1.0)
    if storage.number == "e4m3":
        values = values.clamp(-top, top).to(torch.float8_e4m3fn).float()
    elif storage.number == "e2m1":
        grid = torch.tensor(_E2M1[:8], device=x.device)
        middles = (grid[1:] + grid[:-1]) / 2
        values = values.sign() * grid[torch.bucketize(values.abs(), middles)]
    else:
        values = values.round().clamp(-top - 1, top)
    found = (values * scale).reshape(x.shape)
    return found if prescale is None else found * prescale


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the GPU if there is one."""
    import torch

    return tensor.cuda() if torch.cuda.is_available() else tensor
