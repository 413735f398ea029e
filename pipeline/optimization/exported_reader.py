"""The weights that an exported folder represents, unpacked and joined again, by HF's names.

    with QnemoWeights(folder, shape) as ours:
        ours.tensor("model.layers.0.self_attn.q_proj.weight")      # [out, in] float32

Every linear weight is returned as it acts on the layer's input, that is multiplied by the scale
vector of AWQ or SmoothQuant. Weights that are not quantized keep the type that they are stored in.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.architecture import EMBEDDING, FINAL_NORM, LM_HEAD, Shape
from pipeline.models.families import FAMILIES
from pipeline.models.files import tensor_shapes, weight_files
from pipeline.optimization.dequantize import Rounding, dequantize, on_device
from pipeline.optimization.formats import storage_of

if TYPE_CHECKING:
    import torch

    from pipeline.models.hf_model import WeightReader


class QnemoWeights:
    """The weights of all ranks of a qnemo folder."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        config = json.loads((folder / "config.json").read_text())
        self._folder, self._shape = folder, shape
        self._storage = storage_of(config["quantization"]["quant_algo"])
        self._tp, self._pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
        self._norms = {norm.hf: norm.qnemo for norm in shape.layer.norms}
        # HF name → qnemo name, its rows on a rank, and the dimension that ranks share. A rank holds
        # its share of one HF layer after the other, as of queries, keys and values.
        self._linears: dict[str, tuple[str, slice, int]] = {}
        for name, linear, parts in shape.layer.qnemo_linears():
            start = 0
            for part in parts:
                end = start + shape.rows(part.outputs) // (self._tp if linear.split == 0 else 1)
                rows = slice(start, end) if len(parts) > 1 else slice(None)
                self._linears[part.hf] = name, rows, linear.split
                start = end
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

    def tensor(self, name: str) -> torch.Tensor | None:
        import torch

        if name == LM_HEAD and name not in self._ranks[-1].keys():  # noqa: SIM118
            return None  # it is the embedding
        if name in (EMBEDDING, LM_HEAD):
            first = name == EMBEDDING
            files = self._ranks[: self._tp] if first else self._ranks[-self._tp :]
            theirs = "transformer.vocab_embedding.weight" if first else name
            return torch.cat([on_device(f.get_tensor(theirs)) for f in files])[: self._shape.vocab]
        if name.startswith(f"{FINAL_NORM}."):
            kind = name.rpartition(".")[2]
            return on_device(self._ranks[-1].get_tensor(f"transformer.ln_f.{kind}"))
        number, part, kind = _layer_name(name)
        stage, local = divmod(number, self._shape.layers // self._pp)
        files = self._ranks[stage * self._tp : (stage + 1) * self._tp]
        layer = f"transformer.layers.{local}."
        if part in self._norms:
            return on_device(files[0].get_tensor(f"{layer}{self._norms[part]}.{kind}"))
        module, rows, dimension = self._linears[part]
        if kind == "bias":
            whole = [file.get_tensor(f"{layer}{module}.bias") for file in files]
            return on_device(torch.cat([bias[rows] for bias in whole]))
        return torch.cat([self._linear(f, layer + module, rows) for f in files], dim=dimension)

    def rounding(self, name: str) -> Rounding | None:
        import torch

        if self._storage is None or not self._shape.layer.is_linear(name):
            return None
        number, part, _ = _layer_name(name)
        stage, local = divmod(number, self._shape.layers // self._pp)
        files = self._ranks[stage * self._tp : (stage + 1) * self._tp]
        linear, _, dimension = self._linears[part]
        module = f"transformer.layers.{local}.{linear}"
        if f"{module}.weights_scaling_factor" not in files[0].keys():  # noqa: SIM118
            return None
        if not self._storage.prescaled:
            return Rounding(self._storage, None)
        # Ranks that share a layer's inputs hold the scales of their own share.
        holders = files if dimension == 1 else files[:1]
        scales = [on_device(f.get_tensor(f"{module}.prequant_scaling_factor")) for f in holders]
        return Rounding(self._storage, torch.cat(scales).float())

    def _linear(self, file: Any, module: str, rows: slice) -> torch.Tensor:
        """Rows of a rank's part of a linear weight, [rows, in]."""
        if self._storage is None or f"{module}.weights_scaling_factor" not in file.keys():  # noqa: SIM118
            return on_device(file.get_tensor(f"{module}.weight")[rows])

        def optional(wanted: bool, name: str) -> torch.Tensor | None:
            return on_device(file.get_tensor(f"{module}.{name}")) if wanted else None

        scale = on_device(file.get_tensor(f"{module}.weights_scaling_factor"))
        stored = file.get_tensor(f"{module}.weight")
        halved = self._storage.packed == "rows" and rows.stop is not None
        return dequantize(
            self._storage,
            on_device(stored[slice(rows.start // 2, rows.stop // 2) if halved else rows]),
            scale if scale.numel() == 1 else scale[rows],
            optional(self._storage.second_scale, "weights_scaling_factor_2"),
            optional(self._storage.prescaled, "prequant_scaling_factor"),
        )


class UnifiedWeights:
    """The weights of a unified HF folder.

    AWQ's input scale is folded into the norm in front of a layer. It is multiplied back into the
    layers behind the norm, so that the norm itself has no weight of its own to compare.
    """

    def __init__(self, folder: Path, source: WeightReader, shape: Shape) -> None:
        from pipeline.models.hf_model import WeightReader

        quant_file = folder / "hf_quant_config.json"
        algorithm = (
            json.loads(quant_file.read_text())["quantization"]["quant_algo"]
            if quant_file.is_file()
            else None
        )
        self._storage = storage_of(algorithm)
        self._in_norms = bool(self._storage and self._storage.group and self._storage.prescaled)
        self._shape = shape
        # Norms of some families multiply by (weight + 1).
        self._centre = 1.0 if FAMILIES[shape.family].zero_centered else 0.0
        self._names = {name for file in weight_files(folder) for name in tensor_shapes(file)}
        self._source, self._written = source, WeightReader(folder)

    def __enter__(self) -> UnifiedWeights:
        self._written.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._written.__exit__(*exception)

    def tensor(self, name: str) -> torch.Tensor | None:
        module = name.rpartition(".")[0]
        if name == LM_HEAD:
            return self._optional(name)
        if name == EMBEDDING or name.startswith(f"{FINAL_NORM}."):
            return self._read(name)
        number, part, kind = _layer_name(name)
        layer = f"model.layers.{number}."
        if self._in_norms and part in {norm.hf for norm in self._shape.layer_at(number).norms}:
            behind = [linear for linear, norm in self._after(number).items() if norm == part]
            scaled = any(f"{layer}{linear}.weight_scale" in self._names for linear in behind)
            if scaled and kind == "bias":
                return self._read(name).float() / self._scale_in(f"{module}.weight")
            return None if scaled else self._read(name)
        scale = self._optional(f"{module}.weight_scale")
        if self._storage is None or kind == "bias" or scale is None:
            return self._read(name)
        weight = dequantize(
            self._storage,
            self._read(name),
            scale,
            self._optional(f"{module}.weight_scale_2"),
            self._optional(f"{module}.pre_quant_scale"),
        )
        if self._in_norms and (norm := self._after(number).get(part)):
            weight *= self._scale_in(f"{layer}{norm}.weight")
        return weight

    def rounding(self, name: str) -> Rounding | None:
        module = name.rpartition(".")[0]
        scaled = f"{module}.weight_scale" in self._names
        if self._storage is None or not name.endswith(".weight") or not scaled:
            return None
        prescale = self._optional(f"{module}.pre_quant_scale")
        number, part, _ = _layer_name(name)
        if self._in_norms and (norm := self._after(number).get(part)):
            of_norm = self._scale_in(f"model.layers.{number}.{norm}.weight")
            prescale = of_norm if prescale is None else prescale.float() * of_norm
        return Rounding(self._storage, None if prescale is None else prescale.float())

    def _after(self, number: int) -> dict[str, str]:
        """Linear layers of a layer that read a norm's output, each with the norm."""
        linears = self._shape.layer_at(number).linears
        return {name: ln.after for ln in linears if ln.after for name in ln.names}

    def _read(self, name: str) -> torch.Tensor:
        return on_device(self._written.tensor(name))

    def _optional(self, name: str) -> torch.Tensor | None:
        return self._read(name) if name in self._names else None

    def _scale_in(self, norm: str) -> torch.Tensor:
        """The factor by which a norm differs from the source's, [hidden]."""
        import torch

        theirs = self._read(norm).float() + self._centre
        ours = on_device(self._source.tensor(norm)).float() + self._centre
        return torch.where(ours == 0, 1.0, theirs / ours)


def _layer_name(name: str) -> tuple[int, str, str]:
    """model.layers.<number>.<part>.<kind>, of a tensor in a layer."""
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return int(number), part, kind
