"""Memory of a served model, computed from its sizes and precision: what it needs, and what fits.

    bytes on a device = weights + cache + step + overhead

    weights   linear layers at their precision, embedding and output layer, / tensor parallel
    cache     2 (keys, values) · layers · key-value heads · head size · bytes a cached token, and
              256 bytes with prompt lookup
    step      what one forward pass holds at a time: the activations of a layer, and logits
    overhead  the runtime itself: CUDA context and kernels, libraries of the process

vLLM and TensorRT-LLM divide the cache into pages that all sequences share, so that one sequence of
full length must fit; our own engines keep a row of full length for each slot. Imports nothing
heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.hardware import GIB, Machine
from pipeline.engines.batching.prompt_lookup import INDEX_BYTES
from pipeline.models.architecture import Shape, shape_of
from pipeline.optimization.formats import FORMATS

# Bytes a weight of the linear layers, scales included, of precisions that are not weight formats:
# int8 and int4 of ONNX Runtime have one float32 for 32 weights.
PLAIN_BYTES: Mapping[str, float] = {"fp32": 4, "fp16": 2, "bf16": 2}
ONNX_BYTES: Mapping[str, float] = {"int8": 1 + 4 / 32, "int4": 0.5 + 4 / 32}
GPU_OVERHEAD = 1.5 * GIB


@dataclass(frozen=True)
class MemoryRule:
    """How an engine uses the memory of a device.

    paged: sequences share pages of the cache, so that one sequence of full length must fit. If not,
        each slot has a row of full length.
    step_tokens: of one forward pass at most.
    gpu_share: of a GPU that the runtime takes.
    cpu_overhead: bytes of the server and the engine's process without a model.
    """

    paged: bool = False
    step_tokens: int = 512  # PROMPT_TOKENS_PER_STEP of engines/batching/scheduler.py
    gpu_share: float = 1.0
    cpu_overhead: float = 0.0


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder, in elements.

    ffn: columns of the feed-forward part that a token goes through. refused: engines that cannot
    take the model, by name, and why. linears: inputs and outputs of every linear layer, where
    layers differ, as with experts; empty: all layers are alike. halves: products that lead into the
    feed-forward part, 2 with a gate.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    tied: bool
    refused: Mapping[str, str] = field(default_factory=dict)
    linears: tuple[tuple[int, int], ...] = ()
    halves: int = 2

    @classmethod
    def of(cls, shape: Shape) -> Decoder:
        """The sizes of a model whose family is known."""
        experts = shape.experts
        used = experts.per_token * experts.ffn + experts.shared_ffn if experts else 0
        return cls(
            layers=shape.layers,
            hidden=shape.hidden,
            ffn=max(shape.ffn, used),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab=shape.vocab,
            positions=shape.max_positions,
            tied=shape.tied,
            refused=shape.refused_engines,
            linears=tuple(shape.linear_sizes()) if experts else (),
            halves=2 if shape.layer.gated else 1,
        )

    @property
    def products(self) -> int:
        """Weights of the linear layers."""
        if self.linears:
            return sum(inputs * outputs for inputs, outputs in self.linears)
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + (self.halves + 1) * self.hidden * self.ffn)

    @property
    def table(self) -> int:
        """Weights of the embedding; the output layer has as many."""
        return self.vocab * self.hidden

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter on every linear layer: rank · (inputs + outputs) each."""
        if self.linears:
            return rank * sum(inputs + outputs for inputs, outputs in self.linears)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ends = (self.hidden + q) + 2 * (self.hidden + kv) + (q + self.hidden)
        return self.layers * rank * (ends + (self.halves + 1) * (self.hidden + self.ffn))


def read_decoder(folder: Path) -> Decoder:
    """The sizes in a folder's config.json, with the defaults of transformers.

    Raises:
        DataError: there is no config.json, or it is not of a decoder with these sizes.
    """
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text())
        if shape := _shape(file, config):
            return Decoder.of(shape)
        config = config.get("text_config") or config  # of a vision-language model
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return Decoder(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            ffn=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} does not give the model's sizes ({error!r}): give the folder of an HF model"
        ) from error


def _shape(file: Path, config: Mapping[str, Any]) -> Shape | None:
    """The sizes of a model that the pipeline trains, quantized or not; None of another one."""
    try:
        return shape_of(file, config, quantized=True)
    except DataError:
        return None


def check_lengths(engine: EngineConfig, positions: int) -> None:
    """
    Args:
        positions: tokens of the model's longest sequence.

    Raises:
        ConfigError: a prompt of full length leaves no room for an answer, or sequences are longer
            than the model allows.
    """
    if engine.max_input_len >= engine.max_seq_len:
        raise ConfigError(
            f"engine.max_input_len={engine.max_input_len} leaves no room for an answer within "
            f"engine.max_seq_len={engine.max_seq_len}: raise the second or lower the first"
        )
    if engine.max_seq_len > positions:
        raise ConfigError(
            f"engine.max_seq_len={engine.max_seq_len} is more than the {positions} positions of "
            f"the model: set it to {positions} or less"
        )


def check_answer_length(max_tokens: int, max_seq_len: int) -> None:
    """
    Args:
        max_tokens: of an answer that stage=benchmark asks for. max_seq_len: of the engine.

    Raises:
        ConfigError: such an answer leaves no room for its question.
    """
    if max_tokens >= max_seq_len:
        raise ConfigError(
            f"benchmark.max_tokens={max_tokens} leaves no room for a question within the engine's "
            f"{max_seq_len} tokens (engine.max_seq_len): lower it"
        )


def capacity(machine: Machine, *, gpus: int) -> int:
    """Bytes on each device of a group of `gpus` GPUs; 0 means the memory of the processor.

    A GPU without memory of its own shares the machine's. 0 if the machine does not report it.
    """
    largest = sorted((gpu.memory_bytes for gpu in machine.gpus), reverse=True)[:gpus]
    # Every GPU of a group holds the same share, so the smallest decides.
    return min(largest, default=0) or machine.memory_bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes on each device. token: bytes of the cache for each token."""

    weights: float
    step: float
    overhead: float
    token: float

    @property
    def fixed(self) -> float:
        return self.weights + self.step + self.overhead

    def cache_tokens(self, capacity: float) -> int:
        """Tokens for which the cache has space beside the rest."""
        return max(0, int((capacity - self.fixed) // self.token))


def product_bytes(precision: str) -> float:
    """Bytes a weight of the layers' products, scales included."""
    known = {**PLAIN_BYTES, **ONNX_BYTES}
    return known[precision] if precision in known else FORMATS[precision].bytes_per_weight


def footprint(
    model: Decoder,
    rule: MemoryRule,
    precision: str,
    *,
    gpu: bool,
    slots: int,
    cache_bytes: float,
    tensor_parallel: int = 1,
    lora_rank: int = 0,
    speculates: bool = False,
    stored: int = 0,
) -> Footprint:
    """What serving needs on each device.

    Args:
        precision: of the linear layers, as in a profile. cache_bytes: of a key or value.
        slots: sequences at a time. lora_rank: of one adapter on every linear layer; 0 for none.
        speculates: prompt lookup keeps an index of each sequence.
        stored: bytes of the weights if they are loaded as they are; 0: computed from the sizes.
    """
    full = PLAIN_BYTES.get(precision, 2 if gpu else 4)
    # ONNX Runtime GenAI rounds the output layer too, and leaves the embedding in float32.
    output = ONNX_BYTES.get(precision, full)
    tables = model.table * (full if model.tied else full + output)
    weights = stored or model.products * product_bytes(precision) + tables
    weights += full * model.adapter(lora_rank)
    tokens = rule.step_tokens
    activations = (
        tokens * (2 * model.hidden + (model.halves + 1) * model.ffn / tensor_parallel) * full
    )
    # Paged runtimes compute logits only where a token is chosen, in float32 beside their own type.
    scored = slots if rule.paged else max(tokens, slots)
    logits = scored * model.vocab * (full + 4 if gpu else 4)
    kv_heads = max(1, model.kv_heads / tensor_parallel)
    return Footprint(
        weights=weights / tensor_parallel,
        step=activations + logits,
        overhead=GPU_OVERHEAD if gpu else rule.cpu_overhead,
        token=2 * model.layers * kv_heads * model.head_dim * cache_bytes + INDEX_BYTES * speculates,
    )


@dataclass(frozen=True)
class Fit:
    """Whether a footprint fits, and what would fit.

    needed, capacity: bytes. longest: tokens of the longest sequence that fits, up to the model's
    positions; 0 if none fits. most: sequences of full length at a time.
    """

    needed: float
    capacity: float
    longest: int
    most: int

    @property
    def lacking(self) -> float:
        """Bytes that are missing; 0 if it fits."""
        return max(0.0, self.needed - self.capacity)


def fit(
    model: Decoder, rule: MemoryRule, takes: Footprint, capacity: float, slots: int, length: int
) -> Fit:
    """Sequences of `length` tokens, `slots` at a time, on a device with `capacity` bytes."""
    tokens = takes.cache_tokens(capacity)
    rows = 1 if rule.paged else slots
    return Fit(
        needed=takes.fixed + takes.token * rows * length,
        capacity=capacity,
        longest=min(model.positions, tokens // rows),
        most=tokens // length,
    )


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
