"""The sizes of a model, from the config.json of its HF folder: what models are built from.

    shape = read_shape(folder)

`checks` says whether the whole folder can be used. Knows neither torch nor a vendor's library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.models.config_fields import Json, number_of, size_of, switch_of
from pipeline.models.config_forms import LAYER_TYPES, plain_config
from pipeline.models.expert_sizes import ExpertSizes, experts_of
from pipeline.models.families import FAMILIES, family_of
from pipeline.models.families.record import ConfigKeys, Family, Layer, Linear, Norm, Plain, Size
from pipeline.models.families.unsupported import reason_of
from pipeline.models.files import read_json
from pipeline.models.other_forms import other_form
from pipeline.models.rope_scaling import Llama3Rope, Rope, rope_scaling_of
from pipeline.models.sources.address import not_a_folder

# Tensor names outside the layers, from transformers' modeling_{llama,qwen2,mistral}.py.
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm"
LM_HEAD = "lm_head.weight"

_DTYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "auto")


# Activations that Megatron computes as transformers does, by transformers' names.
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2")


@dataclass(frozen=True)
class Window:
    """Sliding-window attention. size: tokens that a token attends to, itself included.

    layers: whether each layer has it; the others attend to all tokens before.
    """

    size: int
    layers: tuple[bool, ...]


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
    rope_scaling: Llama3Rope | Rope | None
    norm_eps: float
    tied: bool  # the output layer is the embedding matrix
    qkv_bias: bool
    attention_dropout: float
    initializer_range: float
    output_bias: bool = False  # of attention's output
    mlp_bias: bool = False
    hidden_dropout: float = 0.0  # of embeddings and residual sums, in training
    activation: str = "silu"  # transformers' name
    rotary_share: float = 1.0  # of a head's elements that are rotated
    window: Window | None = None
    window_rope_theta: float | None = None  # of layers with a window; None: as the others'
    attention_scale: float | None = None  # of scores; None: 1 / sqrt(head_dim)
    attention_cap: float | None = None  # scores are cap * tanh(scores / cap)
    logit_cap: float | None = None  # so are the logits

    experts: ExpertSizes | None = None

    @property
    def layer(self) -> Layer:
        """The weights of one of its layers, one with experts if there are any."""
        layer = FAMILIES[self.family].layer
        return layer.of(self.experts.count) if self.experts else layer

    @property
    def layer_kinds(self) -> tuple[tuple[Layer, int], ...]:
        """Its layers that differ, each with how many there are of it."""
        dense = FAMILIES[self.family].dense
        if dense is None or self.experts is None:
            return ((self.layer, self.layers),)
        some = sum(self.experts.layers)
        return tuple(kind for kind in ((self.layer, some), (dense, self.layers - some)) if kind[1])

    @property
    def every_layer(self) -> Layer:
        """The members of all its layers, to find one by its name."""
        members = (member for layer, _ in self.layer_kinds for member in layer.members)
        return Layer(tuple(dict.fromkeys(members)))

    @property
    def used_layer(self) -> Layer:
        """The weights of `layer` that one token goes through: of so many experts only."""
        return (
            FAMILIES[self.family].layer.of(self.experts.per_token) if self.experts else self.layer
        )

    @property
    def used_ffn(self) -> int:
        """Columns of the feed-forward part that one token goes through."""
        if self.experts is None:
            return self.ffn
        return self.experts.per_token * self.experts.ffn + self.experts.shared_ffn

    def layer_at(self, number: int) -> Layer:
        """The weights of a layer, under each library's names."""
        dense = FAMILIES[self.family].dense
        if dense is None or (self.experts and self.experts.layers[number]):
            return self.layer
        return dense

    def size(self, name: Size) -> int:
        sizes: dict[Size, int] = {
            "hidden": self.hidden,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "ffn": self.ffn,
            "head": self.head_dim,
            "one": 1,
        }
        if self.experts:
            sizes["experts"] = self.experts.count
            sizes["expert"] = self.experts.ffn
            sizes["shared"] = self.experts.shared_ffn
        return sizes[name]

    def rows(self, outputs: Iterable[Size]) -> int:
        """Rows of blocks of these sizes."""
        return sum(self.size(block) for block in outputs)

    @property
    def norm_tensors(self) -> tuple[str, ...]:
        """The tensors of a norm."""
        return ("weight", "bias") if FAMILIES[self.family].norm == "LayerNorm" else ("weight",)

    @property
    def no_qnemo(self) -> str | None:
        """Why the model has no TensorRT-LLM checkpoint; None if it has one."""
        if reason := FAMILIES[self.family].refused.get("qnemo"):
            return reason
        variants = {
            "biases of attention's output or the feed-forward part": (
                self.output_bias or self.mlp_bias
            ),
            "sliding windows": self.window is not None,
            f"the activation {self.activation}": self.activation not in ("silu", "swish"),
            "such a rope_scaling": isinstance(self.rope_scaling, Rope),
        }
        names = [name for name, has in variants.items() if has]
        if not names:
            return None
        return f"this pipeline has no proof of {names[0]} in a TensorRT-LLM checkpoint"

    @property
    def refused_engines(self) -> dict[str, str]:
        """Engines that cannot take the model, by name, and why."""
        return dict(FAMILIES[self.family].refused)

    def has_bias(self, linear: Linear) -> bool:
        return linear.bias is not None and bool(getattr(self, linear.bias))

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every weight of the HF checkpoint, by name, with its shape."""
        yield EMBEDDING, (self.vocab, self.hidden)
        for i in range(self.layers):
            for name, shape in self.layer_tensors(self.layer_at(i)):
                yield f"model.layers.{i}.{name}", shape
        for kind in self.norm_tensors:
            yield f"{FINAL_NORM}.{kind}", (self.hidden,)
        if not self.tied:
            yield LM_HEAD, (self.vocab, self.hidden)

    def layer_tensors(self, layer: Layer | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every weight of `layer`, or of another of its layers, by its name in the layer, with its
        shape."""
        for member in (layer or self.layer).members:
            if isinstance(member, Norm):
                for kind in self.norm_tensors:
                    yield f"{member.hf}.{kind}", (self.size(member.size),)
                continue
            if isinstance(member, Plain):
                yield member.hf, tuple(self.size(name) for name in member.sizes)
                continue
            assert isinstance(member, Linear), "a Shape's layers have numbered experts"
            for part in member.parts:
                rows = self.rows(part.outputs)
                yield f"{part.hf}.weight", (rows, self.size(member.inputs))
                if self.has_bias(member):
                    yield f"{part.hf}.bias", (rows,)

    def linear_weights(self) -> Iterator[str]:
        """Names of the weights of linear layers, which adapters tune and formats quantize."""
        for i in range(self.layers):
            for linear in self.layer_at(i).linears:
                yield from (f"model.layers.{i}.{name}.weight" for name in linear.names)

    def linear_sizes(self) -> Iterator[tuple[int, int]]:
        """(inputs, outputs) of every linear layer, as HF has them."""
        for i in range(self.layers):
            for linear in self.layer_at(i).linears:
                for part in linear.parts:
                    yield self.size(linear.inputs), self.rows(part.outputs)

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
    if other := other_form(folder):
        raise DataError(other)
    file = folder / "config.json"
    better = not_a_folder(folder)
    remedy = better or "give the folder of an HF model (config.json, *.safetensors, tokenizer)"
    return shape_of(file, read_json(file, remedy))


def shape_of(file: Path, config: Json, *, quantized: bool = False) -> Shape:
    """As `read_shape`, of a config.json that was read before.

    file: its path, for errors. quantized: the folder's weights may be quantized.
    """
    family = _family(file, config)  # first: it says more of a model that needs its own code
    check_no_code(file, config)
    config = plain_config(file, config)
    if not quantized:
        _check_not_quantized(file, config)
    _check_dtype(file, config)
    keys = family.keys
    hidden, heads = (
        size_of(file, config, "hidden_size"),
        size_of(file, config, "num_attention_heads"),
    )
    max_positions = size_of(file, config, "max_position_embeddings")
    layers = size_of(file, config, "num_hidden_layers")

    def biased(name: str | None) -> bool:
        return name is not None and switch_of(file, config, name, keys.bias_default)

    for name, what in keys.never.items():
        if switch_of(file, config, name):
            raise DataError(
                f"{file}: {name}=true, {what}, is in no record of {family.title} (our limit): use "
                "a model without it"
            )
    attention_bias = biased(keys.attention_bias)
    output_bias = attention_bias
    if keys.output_bias is not None:
        output_bias = bool(keys.output_bias) and switch_of(file, config, keys.output_bias or "")
        if output_bias and not attention_bias:
            raise DataError(
                f"{file}: {keys.output_bias}=true without {keys.attention_bias}: Megatron-Core has "
                "no bias of attention's output alone (Megatron-Core's limit): use another model"
            )
    kv_heads_default = heads if family.key_value_heads_optional else keys.kv_heads_default
    _check_layer_types(file, config, family)
    shape = Shape(
        family=family.name,
        layers=layers,
        hidden=hidden,
        ffn=size_of(file, config, "intermediate_size"),
        heads=heads,
        kv_heads=size_of(file, config, "num_key_value_heads", kv_heads_default),
        head_dim=size_of(file, config, "head_dim", keys.head_dim_default or hidden // heads),
        vocab=size_of(file, config, "vocab_size"),
        max_positions=max_positions,
        rope_theta=number_of(file, config, "rope_theta", keys.rope_theta_default, positive=True),
        rope_scaling=rope_scaling_of(file, config, family),
        norm_eps=number_of(file, config, keys.norm_eps, keys.norm_eps_default, positive=True),
        tied=switch_of(file, config, "tie_word_embeddings", keys.tied_default),
        qkv_bias=family.qkv_bias or attention_bias,
        attention_dropout=number_of(
            file, config, "attention_dropout", keys.dropout_default, below=1
        ),
        initializer_range=number_of(file, config, "initializer_range", keys.initializer_default),
        output_bias=output_bias,
        mlp_bias=biased(keys.mlp_bias),
        hidden_dropout=_dropout(file, config, keys),
        activation=_activation(file, config, family),
        rotary_share=number_of(
            file, config, "partial_rotary_factor", keys.rotary_share_default, positive=True
        ),
        window=_window(file, config, family, layers, max_positions),
        experts=experts_of(file, config, family, layers),
        **_attention_extras(file, config, family),
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
    if family is None and (reason := reason_of(names)):
        raise DataError(f"{file}: architecture {', '.join(names)} is not supported: {reason}")
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


def _activation(file: Path, config: Json, family: Family) -> str:
    keys = family.keys
    name = config.get(keys.activation)
    name = keys.activation_default if name is None else name
    if name not in ACTIVATIONS:
        raise DataError(
            f"{file}: {keys.activation}={name!r:.80} is not supported: Megatron-Core computes "
            f"{', '.join(ACTIVATIONS)} as transformers does; use a model with one of them"
        )
    return str(name)


def _dropout(file: Path, config: Json, keys: ConfigKeys) -> float:
    values = {
        name: number_of(file, config, name, keys.dropout_default, below=1) for name in keys.dropouts
    }
    if len(set(values.values())) > 1:
        given = ", ".join(f"{name}={value:g}" for name, value in values.items())
        raise DataError(
            f"{file}: {given}: Megatron-Core has one dropout for embeddings and residual sums: "
            "give both the same value"
        )
    return max(values.values(), default=0.0)


def _window(
    file: Path, config: Json, family: Family, layers: int, max_positions: int
) -> Window | None:
    """Windows of the layers; None if none is shorter than the model's context.

    Where layers with a window have a rotary base of their own, they stay what they are.
    """
    rule = family.window
    if rule is None or (rule.switch and not switch_of(file, config, rule.switch)):
        return None
    size = config.get("sliding_window", rule.default)
    if size is None:
        return None
    size = size_of(file, {"sliding_window": size}, "sliding_window")
    kinds = config.get("layer_types") if rule.by_layer else None
    if kinds is not None:
        windowed = tuple(kind == LAYER_TYPES[1] for kind in kinds)
    elif rule.full_every:
        every = rule.full_every
        if rule.full_every_key is not None:
            every = size_of(file, config, rule.full_every_key, every)
        windowed = tuple((layer + 1) % every != 0 for layer in range(layers))
    else:
        first = 0
        if rule.from_layer is not None:
            key, default = rule.from_layer
            first = int(number_of(file, config, key, default))
        windowed = tuple(layer >= first for layer in range(layers))
    counts = size < max_positions or "rope_local_base_freq" in family.numbers
    return Window(size, windowed) if counts and any(windowed) else None


def _attention_extras(file: Path, config: Json, family: Family) -> dict[str, Any]:
    """Fields that only some families have."""
    found: dict[str, Any] = {}
    for name, rule in family.numbers.items():
        value = config.get(name, rule.default)
        if value is not None:
            found[rule.field] = number_of(file, {name: value}, name, positive=True) ** rule.power
    return found


def _check_layer_types(file: Path, config: Json, family: Family) -> None:
    """Refuse a list of layer types that contradicts the rest."""
    types = config.get("layer_types")
    if types is None:
        return
    if not isinstance(types, list) or not set(map(str, types)) <= set(LAYER_TYPES):
        raise DataError(
            f"{file}: layer_types={types!r:.80} should be a list of {' and '.join(LAYER_TYPES)}, "
            "which are the types that are supported: use another model"
        )
    if len(types) != config.get("num_hidden_layers"):
        raise DataError(
            f"{file}: layer_types names {len(types)} layers and num_hidden_layers is "
            f"{config.get('num_hidden_layers')!r:.20}: correct one of them"
        )
    if LAYER_TYPES[1] not in types:
        return
    rule = family.window
    if rule is None or (rule.switch and not switch_of(file, config, rule.switch)):
        switch = f"{rule.switch} is not true" if rule else f"{family.title} has no windows"
        raise DataError(
            f"{file}: layer_types has {LAYER_TYPES[1]}, though {switch}: write "
            f"{LAYER_TYPES[0]} for each layer if the model was trained so"
        )


# The way out for weights that someone quantized, by quantization_config.quant_method.
_QUANTIZED = {
    "gptq": "the 4-bit weights of GPTQ",
    "awq": "the 4-bit weights of AWQ",
    "bitsandbytes": "the weights of bitsandbytes",
    "fp8": "FP8 weights with their scales",
    "fbgemm_fp8": "FP8 weights with their scales",
    "compressed-tensors": "the weights of llm-compressor",
    "modelopt": "the weights of ModelOpt",
    "mxfp4": "MXFP4 weights",
    "torchao": "the weights of torchao",
}


def _check_not_quantized(file: Path, config: Json) -> None:
    """Refuse weights that are quantized already: training and the proofs need the model itself."""
    described = config.get("quantization_config") or config.get("compression_config")
    beside = file.with_name("hf_quant_config.json")  # ModelOpt's, beside a plain config.json
    if not described and not beside.is_file():
        return
    method = described.get("quant_method") if isinstance(described, dict) else None
    if described is None and beside.is_file():
        file, method = beside, "modelopt"
    what = _QUANTIZED.get(str(method), f"quantized weights ({method or 'of some kind'!s:.40})")
    raise DataError(
        f"{file}: the folder holds {what}, already quantized: give the folder of the model that "
        "they were made from, which its card names (for an adapter on quantized weights, too), and "
        "choose the format with quantize=… , which quantizes after training"
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
