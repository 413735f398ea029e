"""Memory of a served model, from its sizes and precisions: what it needs, and what fits.

    bytes on a device = weights + cache + step + overhead

    weights   layers' products at their precision, embedding and output layer, / tensor parallel
    cache     2 (keys, values) · layers · key-value heads · head size · bytes, of each token held
    step      what one forward pass holds at once: a layer's activations, and logits
    overhead  the runtime itself: CUDA's context and kernels, a process's libraries

vLLM and TensorRT-LLM cut the cache into pages that all sequences share, so one sequence of full
length must fit; our own engines keep a row of full length for each sequence. Imports nothing heavy.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.hardware import GIB, Machine
from pipeline.optimization.formats import FORMATS

# Bytes a weight of the layers' products, scales included, of what is no weight format of its own:
# int8 and int4 of ONNX Runtime have one float32 for 32 weights.
PLAIN_BYTES: Mapping[str, float] = {"fp32": 4, "fp16": 2, "bf16": 2}
ONNX_BYTES: Mapping[str, float] = {"int8": 1 + 4 / 32, "int4": 0.5 + 4 / 32}
PAGED = ("trtllm", "vllm")
# Tokens of a forward pass at most: the runtimes' defaults (vLLM's for large GPUs), and ours
# (batching.PROMPT_TOKENS_PER_STEP).
STEP_TOKENS = {"trtllm": 8192, "vllm": 8192, "hf": 512, "onnxruntime": 512}
# Share of a GPU that a runtime takes: vLLM's gpu_memory_utilization; TensorRT-LLM's
# free_gpu_memory_fraction, which is of what the weights leave, so that this errs to the safe side.
GPU_SHARE = {"trtllm": 0.9, "vllm": 0.9, "hf": 1.0}
GPU_OVERHEAD = 1.5 * GIB
# Of the server and its engine's process on a CPU, without a model (measured, resident).
CPU_OVERHEAD = {"onnxruntime": 0.2 * GIB, "hf": 0.7 * GIB}


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder, in elements."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    tied: bool

    @property
    def products(self) -> int:
        """Weights of the layers' products."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def table(self) -> int:
        """Weights of the embedding; as many in the output layer."""
        return self.vocab * self.hidden

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter on every product: rank · (inputs + outputs) each."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ends = (self.hidden + q) + 2 * (self.hidden + kv) + (q + self.hidden)
        return self.layers * rank * (ends + 3 * (self.hidden + self.ffn))


def read_decoder(folder: Path) -> Decoder:
    """The sizes in a folder's config.json, with transformers' own defaults.

    Raises:
        DataError: there is no config.json, or it is not of a decoder with these sizes.
    """
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text())
        config = config.get("text_config") or config  # of a model that sees pictures, too
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
            f"{file} does not say the model's sizes ({error!r}): give an HF model's folder"
        ) from error


def check_lengths(engine: EngineConfig, positions: int) -> None:
    """
    Args:
        positions: tokens of the model's longest sequence.

    Raises:
        ConfigError: a prompt of full length leaves no room for an answer, or sequences are longer
            than the model's.
    """
    if engine.max_input_len >= engine.max_seq_len:
        raise ConfigError(
            f"engine.max_input_len={engine.max_input_len} leaves no room for an answer in "
            f"engine.max_seq_len={engine.max_seq_len}: raise the latter or lower the former"
        )
    if engine.max_seq_len > positions:
        raise ConfigError(
            f"engine.max_seq_len={engine.max_seq_len} is over the {positions} positions of the "
            f"model: set it to {positions} at most"
        )


def capacity(machine: Machine, *, gpus: int) -> int:
    """Bytes on each device of a group of so many GPUs, 0 of them for the processor's memory.

    A GPU without memory of its own has the machine's. 0 if the machine does not say.
    """
    largest = sorted((gpu.memory_bytes for gpu in machine.gpus), reverse=True)[:gpus]
    # The smallest of a group holds as much as the others.
    return min(largest, default=0) or machine.memory_bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes on each device. token: of the cache, for each token that it holds."""

    weights: float
    step: float
    overhead: float
    token: float

    @property
    def fixed(self) -> float:
        return self.weights + self.step + self.overhead

    def room(self, capacity: float) -> int:
        """Tokens that the cache can hold beside the rest."""
        return max(0, int((capacity - self.fixed) // self.token))


def product_bytes(precision: str) -> float:
    """Bytes a weight of the layers' products, scales included."""
    known = {**PLAIN_BYTES, **ONNX_BYTES}
    return known[precision] if precision in known else FORMATS[precision].bytes_per_weight


def footprint(
    model: Decoder,
    runtime: str,
    precision: str,
    *,
    gpu: bool,
    slots: int,
    cache_bytes: float,
    tensor_parallel: int = 1,
    lora_rank: int = 0,
    stored: int = 0,
) -> Footprint:
    """What serving takes on each device.

    Args:
        precision: of the products, as in a profile. cache_bytes: of a key or value.
        slots: sequences at once. lora_rank: of one adapter on every product; 0 for none.
        stored: bytes of the weights where they are loaded as they are; 0: worked out from sizes.
    """
    full = PLAIN_BYTES.get(precision, 2 if gpu else 4)
    # ONNX Runtime GenAI rounds the output layer too, and leaves the embedding in float32.
    output = ONNX_BYTES.get(precision, full)
    tables = model.table * (full if model.tied else full + output)
    weights = stored or model.products * product_bytes(precision) + tables
    weights += full * model.adapter(lora_rank)
    tokens = STEP_TOKENS[runtime]
    activations = tokens * (2 * model.hidden + 3 * model.ffn / tensor_parallel) * full
    # The paged runtimes compute logits of the tokens to be chosen alone; float32 beside their own.
    scored = slots if runtime in PAGED else max(tokens, slots)
    logits = scored * model.vocab * (full + 4 if gpu else 4)
    kv_heads = max(1, model.kv_heads / tensor_parallel)
    return Footprint(
        weights=weights / tensor_parallel,
        step=activations + logits,
        overhead=GPU_OVERHEAD if gpu else CPU_OVERHEAD[runtime],
        token=2 * model.layers * kv_heads * model.head_dim * cache_bytes,
    )


@dataclass(frozen=True)
class Fit:
    """Whether a footprint fits, and what would.

    needed, capacity: bytes. longest: tokens of a sequence, at most the model's positions; 0 if
    none fits. most: sequences of full length at once.
    """

    needed: float
    capacity: float
    longest: int
    most: int

    @property
    def lacking(self) -> float:
        """Bytes that are too few; 0 if it fits."""
        return max(0.0, self.needed - self.capacity)


def fit(
    model: Decoder, runtime: str, takes: Footprint, capacity: float, slots: int, length: int
) -> Fit:
    """Sequences of `length` tokens, `slots` of them at once, on a device of so many bytes."""
    room = takes.room(capacity)
    rows = 1 if runtime in PAGED else slots
    return Fit(
        needed=takes.fixed + takes.token * rows * length,
        capacity=capacity,
        longest=min(model.positions, room // rows),
        most=room // length,
    )


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
