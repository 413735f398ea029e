"""What a record of a model family says; the records are in files of their own beside this one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# Sizes of a model, in elements: `Shape.size` gives them. q and kv are heads times head size.
# experts: how many there are; expert and shared: columns of one expert, and of the shared experts.
Size = Literal[
    "hidden",
    "q",
    "kv",
    "ffn",
    "head",
    "one",
    "experts",
    "expert",
    "shared",
]

# Megatron's name of the weight that scales the output of experts that every token goes through.
SHARED_GATE = "mlp.shared_experts.gate_weight"

NO_QNEMO = (
    "this pipeline has no proof of the family's TensorRT-LLM checkpoint; only the unified HF form "
    "is written"
)


@dataclass(frozen=True)
class Norm:
    """A norm of a layer by its names in HF, Megatron-Core and TensorRT-LLM, without `.weight`.

    megatron: as in Transformer Engine's layers and in saved checkpoints, where a norm belongs to
        the linear layer behind it; it ends with `_` there, and weight or bias follows.
    megatron_local: in Megatron's local layers, ends with a dot.
    size: of its weight. Norms of queries and keys are as long as a head.
    """

    hf: str
    megatron: str
    megatron_local: str
    qnemo: str
    size: Size = "hidden"


@dataclass(frozen=True)
class Part:
    """A linear layer of HF. qnemo: TensorRT-LLM's layer that holds its rows.

    outputs: its rows, block by block: some families store query, key and value in one layer.
    """

    hf: str
    outputs: tuple[Size, ...]
    qnemo: str


@dataclass(frozen=True)
class Linear:
    """A linear layer of Megatron-Core, and the HF layers whose rows it holds, in this order.

    interleaved: rows by attention group (g query heads, one key head, one value head, and again),
        instead of one HF layer after another.
    split: the dimension that tensor-parallel ranks share: 0 outputs, 1 inputs.
    after: HF's name of the norm whose output it reads; None: of another layer.
    bias: the field of `Shape` that says whether its parts have biases; None: they never have.
    """

    megatron: str
    parts: tuple[Part, ...]
    inputs: Size
    split: Literal[0, 1]
    after: str | None = None
    interleaved: bool = False
    bias: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """HF's names."""
        return tuple(part.hf for part in self.parts)

    @property
    def outputs(self) -> tuple[Size, ...]:
        """The blocks of rows of all its parts."""
        return tuple(block for part in self.parts for block in part.outputs)


@dataclass(frozen=True)
class Plain:
    """A tensor that is copied as it is, as a router's weight: never adapted, never quantized.

    hf, megatron: whole names within the layer. sizes: its shape.
    """

    hf: str
    megatron: str
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture-of-experts layer: alike, each with linear layers of its own.

    linears: of one expert; {} in their names stands for its number, from 0 on.
    """

    linears: tuple[Linear, ...]

    def numbered(self, count: int) -> tuple[Linear, ...]:
        """The linear layers of `count` experts, expert by expert."""
        return tuple(
            replace(
                linear,
                megatron=linear.megatron.format(number),
                parts=tuple(replace(part, hf=part.hf.format(number)) for part in linear.parts),
            )
            for number in range(count)
            for linear in self.linears
        )


@dataclass(frozen=True)
class Layer:
    """A transformer layer: its norms and linear layers in the order of HF's checkpoints."""

    members: tuple[Norm | Linear | Plain | Experts, ...]

    def of(self, experts: int) -> Layer:
        """The layer of a model with so many experts: each one's linear layers by their names."""
        return _numbered(self, experts) if self.experts else self

    @property
    def experts(self) -> Experts | None:
        return next((member for member in self.members if isinstance(member, Experts)), None)

    @property
    def plain(self) -> tuple[Plain, ...]:
        return tuple(member for member in self.members if isinstance(member, Plain))

    @property
    def norms(self) -> tuple[Norm, ...]:
        return tuple(member for member in self.members if isinstance(member, Norm))

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(member for member in self.members if isinstance(member, Linear))

    def is_linear(self, tensor: str) -> bool:
        """Whether HF's name of a tensor is that of a linear layer's weight."""
        names = {name for linear in self.linears for name in linear.names}
        part = tensor.removeprefix("model.layers.").partition(".")[2]
        return part.endswith(".weight") and part.removesuffix(".weight") in names

    @property
    def gated(self) -> bool:
        """The feed-forward part multiplies an activated half with another one."""
        fields = (("ffn", "ffn"), ("expert", "expert"))
        return any(linear.outputs in fields for linear in self.linears)

    @property
    def normed_heads(self) -> bool:
        """Queries and keys have norms of their own."""
        return any(norm.size == "head" for norm in self.norms)

    @property
    def normed_outputs(self) -> bool:
        """Attention and feed-forward part have norms behind them, before the residual sum."""
        return any(norm.megatron.endswith(".post_layernorm.") for norm in self.norms)

    @property
    def joined(self) -> tuple[tuple[str, ...], ...]:
        """HF layers that runtimes join into one, by the last part of their names."""
        many = (linear.names for linear in self.linears if len(linear.parts) > 1)
        # Once each: the layers of all experts have the same names.
        return tuple(
            dict.fromkeys(tuple(name.rpartition(".")[2] for name in names) for names in many)
        )

    def qnemo_linears(self) -> Iterator[tuple[str, Linear, tuple[Part, ...]]]:
        """TensorRT-LLM's linear layers: name, the layer that it belongs to, and its parts."""
        for linear in self.linears:
            for name in dict.fromkeys(part.qnemo for part in linear.parts):
                yield name, linear, tuple(part for part in linear.parts if part.qnemo == name)


@functools.cache
def _numbered(layer: Layer, experts: int) -> Layer:
    members: list[Norm | Linear | Plain | Experts] = []
    for member in layer.members:
        members += member.numbered(experts) if isinstance(member, Experts) else [member]
    return Layer(tuple(members))


@dataclass(frozen=True)
class Window:
    """Sliding-window attention, as config.json says it.

    default: transformers' window where config.json has no `sliding_window`; None: full attention.
    switch: the key that must be true for the window to count; None: it always counts.
    by_layer: `layer_types` in config.json may say which layers have it.
    full_every: where it does not, the last of so many layers has full attention; None: no layer.
    full_every_key: the key that gives another number.
    from_layer: the key of the first layer with a window, and its default.
    """

    default: int | None = None
    switch: str | None = None
    by_layer: bool = False
    full_every: int | None = None
    full_every_key: str | None = None
    from_layer: tuple[str, int] | None = None


@dataclass(frozen=True)
class Number:
    """A number in config.json that only some families have.

    field: of `Shape` that gets it, to a power. nemo: the field of NeMo's configuration for it.
    default: transformers'; None: there may be none.
    """

    field: str
    nemo: str | None = None
    default: float | None = None
    power: float = 1.0


@dataclass(frozen=True)
class ConfigKeys:
    """How config.json says what families say differently, and transformers' defaults.

    A default is what transformers takes where the key is absent: it leaves defaults out when it
    writes. None: the model's own sizes decide.
    attention_bias: of query, key and value, and of attention's output unless the family always
        has biases on the first three alone. None: config.json does not decide.
    output_bias: the key of attention's output where it has one of its own; False: it never has a
        bias; None: as attention_bias says.
    dropout_default: of attention and of `dropouts`.
    never: switches that must not be on, and what they would add to the layer.
    """

    activation: str = "hidden_act"
    activation_default: str = "silu"
    norm_eps: str = "rms_norm_eps"
    norm_eps_default: float = 1e-6
    head_dim_default: int | None = None
    kv_heads_default: int | None = None
    tied_default: bool = False
    rotary_share_default: float = 1.0
    initializer_default: float = 0.02
    rope_theta_default: float = 10_000.0
    attention_bias: str | None = "attention_bias"
    output_bias: str | Literal[False] | None = None
    mlp_bias: str | None = None
    bias_default: bool = False
    dropouts: tuple[str, ...] = ()
    dropout_default: float = 0.0
    never: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Routing:
    """Experts and the choice among them, as config.json says it: names of its keys.

    count: how many experts. size: columns of one; None: `intermediate_size`. shared_size: columns
    of the experts that see every token, or None. normalized: the key that says whether the chosen
    experts' weights add up to 1; a bool where the family decides.
    dense: keys that say which layers have no experts, in the ways that families have.
    """

    count: str
    size: str | None = None
    shared_size: str | None = None
    normalized: str | bool = True
    dense: tuple[str, ...] = ()


@dataclass(frozen=True)
class NemoModel:
    """NeMo's classes of a family, as "module:name".

    rope_configs: configuration classes for kinds of rope_scaling that have one of their own.
    fields: fields of the configuration that the family alone has.
    two_bases: the configuration takes the rotary bases of windowed and of other layers as a pair.
    """

    model: str
    config: str
    rope_configs: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    two_bases: bool = False


@dataclass(frozen=True)
class TensorRTLLM:
    """How a family is exported for TensorRT-LLM.

    decoder: ModelOpt's name for the way that the family's layers are built.
    architecture: TensorRT-LLM's class. fields: what ModelOpt leaves out of its config.json.
    """

    decoder: str
    architecture: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of decoder-only transformers.

    name: as `Shape.family` has it. title: as people read it.
    architectures: names in config.json's `architectures`. model_type: the value in config.json by
        which transformers chooses its class.
    layer: the weights of a layer, under each library's names.
    trtllm: None if the family has no TensorRT-LLM checkpoint; `refused` says why.
    keys: how config.json says what differs among families.
    norm: RMSNorm, or a layer norm, which has a bias. zero_centered: it multiplies by (weight + 1).
    qkv_bias: query, key and value always have biases, whatever config.json says.
    key_value_heads_optional: without num_key_value_heads each head has its own keys and values.
    window: sliding-window attention; None: the family has none.
    numbers: by their names in config.json, what only some families have.
    ropes: kinds of rope_scaling that transformers' class of the family computes. no_ropes: what to
        do where there are none.
    routing: how config.json describes its experts; None: the family has none.
    dense: the layer without experts, which some layers of a model with experts are.
    refused: stages that a model of the family cannot go through, each with the reason and what to
        do instead. Also "qnemo", the form that is left out of its export; "kv_cache", which is
        not quantized then; and names of engines.
    """

    name: str
    title: str
    architectures: tuple[str, ...]
    model_type: str
    layer: Layer
    nemo: NemoModel
    trtllm: TensorRTLLM | None
    keys: ConfigKeys = ConfigKeys()
    norm: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    zero_centered: bool = False
    qkv_bias: bool = False
    key_value_heads_optional: bool = False
    window: Window | None = None
    numbers: Mapping[str, Number] = field(default_factory=dict)
    ropes: tuple[str, ...] = ("linear", "dynamic", "yarn", "longrope", "llama3")
    no_ropes: str = "remove it"
    routing: Routing | None = None
    dense: Layer | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str, title: str, *architectures: str, **changes: Any) -> Family:
        """A family of its own name that is built as this one, but for the changes."""
        return replace(self, name=name, title=title, architectures=architectures, **changes)
