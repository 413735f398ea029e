"""The sizes of a model, from the config.json of its HF folder: what models are built from.

    shape = read_shape(folder)

`checks` says whether the whole folder can be used. Knows neither torch nor a vendor's library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.core.errors import DataError
from pipeline.models.families import FAMILIES, family_of
from pipeline.models.families.record import Family, Layer, Linear, Norm, Size
from pipeline.models.files import read_json

Json = Mapping[str, Any]

# Tensor names outside the layers, from transformers' modeling_{llama,qwen2,mistral}.py.
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"

_LARGEST = 1e38  # of a number in config.json: what float32 holds
_LARGEST_SIZE = 2**31 - 1  # of a size in config.json, in elements
_MOST_LAYERS = 10_000
_DTYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "auto")


@dataclass(frozen=True)
class Llama3Rope:
    """Rotary frequencies stretched as Llama 3.1 does (transformers, `rope_type: llama3`)."""

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer of the Llama kind: sizes in units of elements."""

    family: str  # name of the record in FAMILIES
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int  # rows of the embedding matrix
    max_positions: int
    rope_theta: float
    rope_scaling: Llama3Rope | None
    norm_eps: float
    tied: bool  # the output layer is the embedding matrix
    qkv_bias: bool
    attention_dropout: float
    initializer_range: float

    @property
    def layer(self) -> Layer:
        """The weights of one of its layers, under each library's names."""
        return FAMILIES[self.family].layer

    def size(self, name: Size) -> int:
        sizes: dict[Size, int] = {
            "hidden": self.hidden,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "ffn": self.ffn,
        }
        return sizes[name]

    def has_bias(self, linear: Linear) -> bool:
        return linear.bias is not None and bool(getattr(self, linear.bias))

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every weight of the HF checkpoint, by name, with its shape."""
        yield EMBEDDING, (self.vocab, self.hidden)
        for i in range(self.layers):
            for name, shape in self.layer_tensors():
                yield f"model.layers.{i}.{name}", shape
        yield FINAL_NORM, (self.hidden,)
        if not self.tied:
            yield LM_HEAD, (self.vocab, self.hidden)

    def layer_tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every weight of a layer, by its name in the layer, with its shape."""
        for member in self.layer.members:
            if isinstance(member, Norm):
                yield f"{member.hf}.weight", (self.hidden,)
                continue
            for part in member.parts:
                rows = self.size(part.outputs)
                yield f"{part.hf}.weight", (rows, self.size(member.inputs))
                if self.has_bias(member):
                    yield f"{part.hf}.bias", (rows,)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())


def read_shape(folder: Path) -> Shape:
    """The sizes in config.json, which must name a known architecture.

    Raises:
        DataError: there is no config.json, a field is missing or wrong, or it asks for something
            that its family does not have (custom code, another activation, a bias, a sliding
            window ...).
    """
    file = folder / "config.json"
    return shape_of(
        file,
        read_json(file, "give the folder of an HF model (config.json, *.safetensors, tokenizer)"),
    )


def shape_of(file: Path, config: Json) -> Shape:
    """As `read_shape`, of a config.json that was read before. file: its path, for errors."""
    check_no_code(file, config)
    family = _family(file, config)
    if "rope_parameters" in config:
        raise DataError(
            f"{file} was written by transformers 5 (rope_parameters): transformers 4.57 would read "
            "the default rotary base; write rope_theta and rope_scaling at the top level instead"
        )
    if config.get("quantization_config"):
        raise DataError(f"{file}: the weights are already quantized: import the unquantized model")
    _check_dtype(file, config)
    _require(file, config, "hidden_act", "silu")
    for bias in ("attention_bias", "mlp_bias"):
        _require(file, config, bias, False)
    hidden, heads = _size(file, config, "hidden_size"), _size(file, config, "num_attention_heads")
    max_positions = _size(file, config, "max_position_embeddings")
    _check_no_window(file, config, family, max_positions)
    shape = Shape(
        family=family.name,
        layers=_size(file, config, "num_hidden_layers"),
        hidden=hidden,
        ffn=_size(file, config, "intermediate_size"),
        heads=heads,
        kv_heads=_size(
            file, config, "num_key_value_heads", heads if family.key_value_heads_optional else None
        ),
        head_dim=_size(file, config, "head_dim", hidden // heads),
        vocab=_size(file, config, "vocab_size"),
        max_positions=max_positions,
        rope_theta=_number(file, config, "rope_theta", 10_000.0, positive=True),
        rope_scaling=_rope_scaling(file, config, family),
        norm_eps=_number(file, config, "rms_norm_eps", 1e-6, positive=True),
        tied=_switch(file, config, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        attention_dropout=_number(file, config, "attention_dropout", 0.0, below=1),
        initializer_range=_number(file, config, "initializer_range", 0.02),
    )
    if shape.heads % shape.kv_heads:
        raise DataError(
            f"{file}: num_attention_heads={shape.heads} is not a multiple of "
            f"num_key_value_heads={shape.kv_heads}: one of the two is wrong"
        )
    return shape


def check_no_code(file: Path, config: Json) -> None:
    """Refuse names of code that transformers would load from the folder or from the hub."""
    for name, value in config.items():
        if "attn_implementation" in name and "/" in json.dumps(value, default=str):
            raise DataError(
                f"{file}: {name}={value!r:.80} names code on the hub: such code is never run here; "
                "remove it"
            )
    if config.get("auto_map"):
        raise DataError(
            f"{file} has auto_map, which names Python code to run from the model's folder: such "
            "code is never run here; use a model whose architecture transformers has itself"
        )


def _family(file: Path, config: Json) -> Family:
    """The family that `architectures` and `model_type` both name."""
    names = config.get("architectures") or []
    known = [name for family in FAMILIES.values() for name in family.architectures]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{file}: architectures={names!r} should be a list of names, such as "
            f"{known[:1]}: correct it"
        )
    family = family_of(names)
    if family is None:
        raise DataError(
            f"{file}: architecture {', '.join(names) or 'not given'} is not supported: "
            f"use a model of {', '.join(known)}"
        )
    if config.get("model_type") != family.model_type:  # by which transformers chooses its class
        raise DataError(
            f"{file}: model_type={config.get('model_type')!r} does not fit architectures={names}: "
            f"write {family.model_type!r}"
        )
    return family


def _rope_scaling(file: Path, config: Json, family: Family) -> Llama3Rope | None:
    scaling = config.get("rope_scaling")
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
    if isinstance(scaling, dict) and kind != scaling.get("type", kind):
        raise DataError(
            f"{file}: rope_scaling.rope_type={kind!r:.80} and type={scaling['type']!r:.80} "
            "disagree: remove one"
        )
    if not isinstance(kind, str | None):
        raise DataError(f"{file}: rope_scaling={scaling!r:.80} should be an object: correct it")
    if kind == "default":
        return None
    if kind not in family.nemo.rope_configs:
        raise DataError(
            f"{file}: rope_scaling of type {kind!r} is not supported for {family.name}: use a "
            "model without it, or a Llama with type 'llama3'"
        )
    low, high = (
        _number(file, scaling, f"{band}_freq_factor", positive=True, within="rope_scaling.")
        for band in ("low", "high")
    )
    if low >= high:
        raise DataError(
            f"{file}: rope_scaling.low_freq_factor={low:g} should be below high_freq_factor="
            f"{high:g}: correct it"
        )
    return Llama3Rope(
        factor=_number(file, scaling, "factor", positive=True, within="rope_scaling."),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=_size(
            file, scaling, "original_max_position_embeddings", within="rope_scaling."
        ),
    )


def _check_no_window(file: Path, config: Json, family: Family, max_positions: int) -> None:
    """Refuse a window that is shorter than the model's context; a longer one is full attention."""
    rule = family.window
    if rule is None or (rule.switch and not _switch(file, config, rule.switch)):
        return
    window = config.get("sliding_window", rule.default)
    if window is None:
        return
    window = _size(file, {"sliding_window": window}, "sliding_window")
    if window < max_positions:
        raise DataError(
            f"{file}: sliding_window={window} is smaller than max_position_embeddings="
            f"{max_positions}, and windowed attention is not supported: lower "
            f"max_position_embeddings to {window}, within which the model is the same"
        )


def _check_dtype(file: Path, config: Json) -> None:
    """`dtype` is the new name of `torch_dtype`; transformers reads either."""
    given = {
        name: config[name] for name in ("torch_dtype", "dtype") if config.get(name) is not None
    }
    for name, value in given.items():
        if not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES:
            raise DataError(
                f"{file}: {name}={value!r:.80} is not a type of weights: write one of "
                f"{', '.join(_DTYPES[:3])}"
            )
    if len(set(given.values())) > 1:
        raise DataError(
            f"{file}: torch_dtype={given['torch_dtype']} and dtype={given['dtype']} disagree: "
            "remove one"
        )


def _require(file: Path, config: Json, name: str, wanted: object) -> None:
    value = config.get(name, wanted)
    if value != wanted:
        raise DataError(
            f"{file}: {name}={value!r} is not supported (only {wanted!r}): use another model"
        )


def _size(file: Path, config: Json, name: str, default: int | None = None, within: str = "") -> int:
    """A whole number above 0. within: the section that it is in, for the message."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(
            f"{file}: {within}{name}={value!r:.80} should be a whole number above 0: correct it"
        )
    if value > _MOST_LAYERS and (name == "num_hidden_layers" or value > _LARGEST_SIZE):
        raise DataError(f"{file}: {within}{name}={value:.3g} is too large: correct it")
    return value


def _switch(file: Path, config: Json, name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{file}: {name}={value!r:.80} should be true or false: correct it")
    return bool(value)


def _number(
    file: Path,
    config: Json,
    name: str,
    default: float | None = None,
    *,
    positive: bool = False,
    below: float = _LARGEST,
    within: str = "",
) -> float:
    """A number that is not negative. positive: 0 is refused too. within: as in `_size`."""
    value = config.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < below or (positive and value == 0):
        least = "above 0" if positive else "from 0"
        raise DataError(
            f"{file}: {within}{name}={value!r} should be a number {least}, below {below:g}: "
            "correct it"
        )
    return float(value)
