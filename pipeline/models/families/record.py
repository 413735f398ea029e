"""What a record of a model family says; the records are in files of their own beside this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# Sizes of a model, in elements: `Shape.size` gives them. q and kv are heads times head size.
Size = Literal["hidden", "q", "kv", "ffn"]


@dataclass(frozen=True)
class Norm:
    """A norm of a layer, [hidden], by its names in HF, Megatron-Core and TensorRT-LLM.

    megatron: as in Transformer Engine's layers and in saved checkpoints, where a norm belongs to
        the linear layer behind it. megatron_local: in Megatron's local layers.
    """

    hf: str
    megatron: str
    megatron_local: str
    qnemo: str


@dataclass(frozen=True)
class Part:
    """A linear layer of HF. outputs: its rows. qnemo: TensorRT-LLM's layer that holds them."""

    hf: str
    outputs: Size
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


@dataclass(frozen=True)
class Layer:
    """A transformer layer: its norms and linear layers in the order of HF's checkpoints."""

    members: tuple[Norm | Linear, ...]

    @property
    def norms(self) -> tuple[Norm, ...]:
        return tuple(member for member in self.members if isinstance(member, Norm))

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(member for member in self.members if isinstance(member, Linear))

    @property
    def joined(self) -> tuple[tuple[str, ...], ...]:
        """HF layers that runtimes join into one, by the last part of their names."""
        many = (linear.names for linear in self.linears if len(linear.parts) > 1)
        return tuple(tuple(name.rpartition(".")[2] for name in names) for names in many)

    def qnemo_linears(self) -> Iterator[tuple[str, Linear, tuple[Part, ...]]]:
        """TensorRT-LLM's linear layers: name, the layer that it belongs to, and its parts."""
        for linear in self.linears:
            for name in dict.fromkeys(part.qnemo for part in linear.parts):
                yield name, linear, tuple(part for part in linear.parts if part.qnemo == name)


@dataclass(frozen=True)
class Window:
    """Sliding-window attention, as config.json says it.

    default: transformers' window where config.json has no `sliding_window`; None: full attention.
    switch: the key that must be true for the window to count; None: it always counts.
    """

    default: int | None = None
    switch: str | None = None


@dataclass(frozen=True)
class NemoModel:
    """NeMo's classes of a family, as "module:name".

    rope_configs: the configuration class for each kind of rope_scaling that the family has. Its
        kinds are the ones that config.json may name.
    fields: fields of the configuration that the family alone has.
    """

    model: str
    config: str
    rope_configs: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


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
    qkv_bias: query, key and value have biases.
    key_value_heads_optional: without num_key_value_heads each head has its own keys and values.
    window: sliding-window attention; None: the family has none.
    refused: stages that a model of the family cannot go through, each with the reason and what to
        do instead.
    """

    name: str
    title: str
    architectures: tuple[str, ...]
    model_type: str
    layer: Layer
    nemo: NemoModel
    trtllm: TensorRTLLM
    qkv_bias: bool = False
    key_value_heads_optional: bool = False
    window: Window | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str, title: str, *architectures: str, **changes: Any) -> Family:
        """A family of its own name that is built as this one, but for the changes."""
        return replace(self, name=name, title=title, architectures=architectures, **changes)
