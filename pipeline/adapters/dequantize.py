"""The weights that an exported folder stands for: unpacked, scaled, re-joined, in HF's names.

    compare(qnemo_weights(folder, shape), source)
    compare(unified_weights(folder, source, shape), source)

Written from the formats' descriptions and not with ModelOpt, so that comparing the result with the
source proves the files. Every linear weight is given as it acts on the layer's input: times the
scale vector of AWQ or SmoothQuant. Knows nothing of configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Shape,
    tensor_shapes,
    weight_files,
)

if TYPE_CHECKING:
    import torch

    from pipeline.adapters.hf import WeightReader

_NORMS = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_layernorm",
}
# qnemo name → HF name, and the dimension on which ranks share it. TensorRT-LLM's fc is HF's gate.
_LINEARS = {
    "attention.dense": ("self_attn.o_proj", 1),
    "mlp.fc": ("mlp.gate_proj", 0),
    "mlp.gate": ("mlp.up_proj", 0),
    "mlp.proj": ("mlp.down_proj", 1),
}
# Linear layers whose input is a norm's output: name → norm.
_AFTER = {
    **dict.fromkeys([f"self_attn.{letter}_proj" for letter in "qkv"], "input_layernorm"),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
}


def qnemo_weights(folder: Path, shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the source model (HF name, float32), from all ranks of a qnemo folder."""
    import torch
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    q, kv = (n * shape.head_dim // tp for n in (shape.heads, shape.kv_heads))
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(safe_open(folder / f"rank{r}.safetensors", framework="pt"))
            for r in range(tp * pp)
        ]
        first, last = ranks[:tp], ranks[-tp:]

        def joined(files: list[Any], name: str) -> torch.Tensor:
            return torch.cat([file.get_tensor(name).float() for file in files])

        def unfused(name: str, ranks: list[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
            """Each rank holds its share of the queries, then of the keys, then of the values."""
            shares = [part.split([q, kv, kv]) for part in ranks]
            for place, letter in enumerate("qkv"):
                yield name.format(letter), torch.cat([share[place] for share in shares])

        yield EMBEDDING, joined(first, "transformer.vocab_embedding.weight")[: shape.vocab]
        yield FINAL_NORM, last[0].get_tensor("transformer.ln_f.weight").float()
        if not shape.tied:
            yield LM_HEAD, joined(last, "lm_head.weight")[: shape.vocab]
        for number in range(shape.layers):
            stage, local = divmod(number, shape.layers // pp)
            files = ranks[stage * tp : (stage + 1) * tp]
            theirs, ours = f"transformer.layers.{local}.", f"model.layers.{number}."
            for norm, name in _NORMS.items():
                yield ours + norm + ".weight", files[0].get_tensor(f"{theirs}{name}.weight").float()
            for name, (hf_name, dimension) in _LINEARS.items():
                parts = [_qnemo_linear(file, theirs + name) for file in files]
                yield f"{ours}{hf_name}.weight", torch.cat(parts, dim=dimension)
            fused = [_qnemo_linear(file, theirs + "attention.qkv") for file in files]
            yield from unfused(f"{ours}self_attn.{{}}_proj.weight", fused)
            if shape.qkv_bias:
                bias = [file.get_tensor(theirs + "attention.qkv.bias").float() for file in files]
                yield from unfused(f"{ours}self_attn.{{}}_proj.bias", bias)


def unified_weights(
    folder: Path, source: WeightReader, shape: Shape
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the source model (HF name, float32), from a unified HF folder.

    AWQ's input scale lies in the norm in front of a layer: the source's norm is undone from the
    layers behind, and such a norm, which then stands for nothing of its own, is left out.
    """
    import torch

    from pipeline.adapters.hf import WeightReader

    names = {name for file in weight_files(folder) for name in tensor_shapes(file)}
    with WeightReader(folder) as written:

        def optional(name: str) -> torch.Tensor | None:
            return written.tensor(name).float() if name in names else None

        def scale_in_norm(norm: str) -> torch.Tensor:
            """What the norm multiplies beyond the source's, [hidden]."""
            theirs, ours = (r.tensor(norm).float() for r in (written, source))
            return torch.where(ours == 0, 1.0, theirs / ours)

        for name, _ in shape.tensors():
            module, _, kind = name.rpartition(".")
            number, _, part = module.partition(".layers.")[2].partition(".")
            behind = [linear for linear, norm in _AFTER.items() if norm == part]
            layer = f"model.layers.{number}."
            if any(written.tensor(f"{layer}{p}.weight").dtype == torch.uint8 for p in behind):
                continue
            if kind == "bias" or f"{module}.weight_scale" not in names:
                yield name, written.tensor(name).float()
                continue
            weight = _dequantize(
                written.tensor(name),
                optional(f"{module}.weight_scale"),
                optional(f"{module}.pre_quant_scale"),
            )
            if weight_norm := _AFTER.get(part):
                weight *= scale_in_norm(f"{layer}{weight_norm}.weight")
            yield name, weight


def compare(
    weights: Iterator[tuple[str, torch.Tensor]], source: WeightReader
) -> dict[str, dict[str, float]]:
    """Cosine with the source's tensor, and |difference| / |source|, of each weight by its name."""
    table = {}
    for name, weight in weights:
        theirs, ours = source.tensor(name).double().flatten(), weight.double().flatten()
        size = theirs.norm()
        # A tensor of zeros, as a bias can be, has no direction: only its being copied counts.
        exact = bool((ours == theirs).all())
        table[name] = {
            "cosine": 1.0 if exact else float(ours @ theirs / (ours.norm() * size)),
            "error": 0.0 if exact else float((ours - theirs).norm() / size),
        }
    return table


def _qnemo_linear(file: Any, module: str) -> torch.Tensor:
    """A rank's part of a linear weight, [out, in] float32."""
    names = set(file.keys())
    scale, prescale = (
        file.get_tensor(f"{module}.{name}").float() if f"{module}.{name}" in names else None
        for name in ("weights_scaling_factor", "prequant_scaling_factor")
    )
    return _dequantize(file.get_tensor(f"{module}.weight"), scale, prescale)


def _dequantize(
    stored: torch.Tensor, scale: torch.Tensor | None, prescale: torch.Tensor | None
) -> torch.Tensor:
    """weight[o, i] = value[o, i] * scale * prescale[i], float32.

    scale: one number, one a row [out], or one a group [out, in / group], for which two rows of
        four-bit values share a byte, the even row in its low half.
    """
    import torch

    if scale is None:
        return stored.float()
    if scale.dim() < 2:
        # A vector is one scale a row; a single number spreads over all.
        weight = stored.float() * scale.reshape(-1, 1)
    else:
        packed = stored.view(torch.uint8).to(torch.int16)
        halves = torch.stack([packed & 15, packed >> 4], dim=1)  # [out / 2, 2, in]
        values = ((halves ^ 8) - 8).flatten(0, 1).float()  # two's complement of four bits
        weight = values * scale.repeat_interleave(values.shape[1] // scale.shape[1], dim=1)
    return weight if prescale is None else weight * prescale
