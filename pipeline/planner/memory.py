"""Peak memory of one training process, piece by piece, from the model's shape alone.

The peak is the moment when the last micro-batch's loss is computed: every layer's activations are
kept for the backward pass and the logits stand beside them. Sources: Korthikanti et al. 2022
(arXiv:2205.05198) for what a transformer layer keeps and how tensor, sequence and pipeline parallel
divide it; Megatron-Core's user guide (distributed optimizer) for bytes per parameter. What this
code's layers keep was counted from Transformer Engine 2.9 and NeMo 2.7. It is within 2 % of the
figures in bench/results (H200; peak of allocated tensors), with which tests/unit/planner compares.

Assumed and not measured: LoRA dropout, adapters on a part of the layers (which are taken to keep
as much), finetune.recompute, and every size of tensor, pipeline, context and data parallel over 2.
"""

from dataclasses import dataclass

from pipeline.core.hardware import GIB
from pipeline.planner.workload import (
    Workload,
    adapted_layers,
    held_parameters,
    linear_parameters,
    norm_parameters,
    saved_tables,
)

# cuBLAS's and cuDNN's workspaces, rotary tables, a batch of token ids.
WORKSPACE = 0.1 * GIB
# CUDA's context, kernels, and the allocator's fragments; NCCL's buffers if there are several ranks.
# An allowance: PyTorch's own count of its tensors does not show them.
CONTEXT, COMMUNICATION = 1.5 * GIB, 2.0 * GIB
# A Python process with NeMo imported, on a CPU (measured with the demo).
CPU_PROCESS = 0.7 * GIB


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. activations, logits: of all micro-batches in flight."""

    weights: float
    fp8_copies: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    workspace: float
    overhead: float

    @property
    def tensors(self) -> float:
        """What PyTorch reports as allocated: everything but the overhead."""
        return self.total - self.overhead

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def peak(work: Workload) -> Memory:
    """Memory of the fullest rank.

    With pipeline parallel in the 1F1B order rank i of p keeps min(p - i, micro-batches)
    micro-batches (Narayanan et al. 2021, arXiv:2104.04473): the first rank has most activations,
    the last one the logits.
    """
    stages = {0, work.parallel.pipeline - 1}
    return max((_of_stage(work, stage) for stage in stages), key=lambda memory: memory.total)


def _of_stage(work: Workload, stage: int) -> Memory:
    shape, element = work.shape, 2 if work.gpu else 4
    settings, parallel = work.settings, work.parallel
    first, last = stage == 0, stage == parallel.pipeline - 1
    tokens = work.micro_tokens / parallel.context
    in_flight = min(parallel.pipeline - stage, work.microbatches)
    table = shape.vocab * shape.hidden / parallel.tensor
    linear = linear_parameters(shape) / (parallel.tensor * parallel.pipeline)
    norms = norm_parameters(shape) / parallel.pipeline
    ends = table * (first + (last and not (shape.tied and first)))
    weights = linear + norms + ends
    trained = weights
    if settings.method != "sft":
        trained = held_parameters(work) / (parallel.tensor * parallel.pipeline)
    gradient, optimizer = bytes_a_trained_parameter(work)
    adapters = 0.0 if settings.method == "sft" else trained
    trained += saved_tables(work, first=first, last=last) / parallel.tensor
    layers = shape.layers / parallel.pipeline
    # Of the loss: the logits, in whose place Transformer Engine writes their gradient; where the
    # output layer is trained its gradient stands beside it. Without Transformer Engine the
    # cross-entropy works on a copy, and the gradient is a third.
    logits = last * tokens * shape.vocab / parallel.tensor * element * (1 if work.gpu else 3)
    whole_output = settings.method == "sft" or bool(saved_tables(work, first=shape.tied))
    if last and whole_output and work.gpu:
        logits += table * element
    # What one layer computes again stands there when its gradient is computed, and the logits do
    # not any more.
    again = tokens * (layer_bytes(work) - kept_bytes(work))
    ranks = parallel.processes > 1
    return Memory(
        weights=element * (weights + adapters),
        # Beside the weights Transformer Engine keeps an 8-bit copy and its transpose.
        fp8_copies=2 * linear if work.fp8 else 0.0,
        gradients=gradient * trained,
        optimizer=optimizer * trained,
        activations=in_flight * layers * tokens * kept_bytes(work)
        + max(0.0, again - logits)
        + 2 * tokens * shape.hidden * element,
        logits=logits,
        workspace=WORKSPACE,
        overhead=(CONTEXT + ranks * COMMUNICATION) if work.gpu else CPU_PROCESS,
    )


def bytes_a_trained_parameter(work: Workload) -> tuple[float, float]:
    """Bytes of gradients and of the optimizer's state.

    On a GPU the optimizer keeps two moments and the lower half of the float32 weights, whose upper
    half the weights are; the data- and context-parallel ranks share them (Megatron-Core,
    distributed optimizer). Of adapters it keeps whole float32 weights, and takes a float32 copy of
    their bfloat16 gradients.
    """
    shards = work.data * work.parallel.context
    if not work.gpu:
        return 4, 8
    return (4, 10 / shards) if work.settings.method == "sft" else (2, 16 / shards)


def layer_bytes(work: Workload) -> float:
    """Bytes that a layer keeps for the backward pass, of each token of a micro-batch.

    Kept are the inputs of products and norms and what attention and SwiGLU need: the layer's input
    and its normed form, q, k, v and attention's output, the same two before the feed-forward part,
    its two halves and their product. Flash attention keeps no scores (Dao 2022,
    arXiv:2205.14135); without dropout there are no masks. An adapter reads what its layer reads.
    """
    shape, settings, tensor = work.shape, work.settings, work.parallel.tensor
    h, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    residual, normed = 2 * h, 2 * h
    halves = 2 if shape.layer.gated else 1
    inner = (q + 2 * kv) + q + halves * shape.used_ffn + shape.used_ffn
    adapter = settings.method != "sft"
    if not work.gpu:
        # Megatron's own layers: norms in separate modules, products and scores written out.
        scores = 3 * shape.heads * work.rows.longest
        inner += normed + (q + kv) + halves * shape.used_ffn * (1 + adapter)
        return 4 * (residual + normed + inner / tensor + scores / tensor)
    # Sequence parallel divides the rest of the layer too, but an adapter reads the gathered input.
    shared = (residual + inner) / tensor
    shared += normed if adapter else normed / tensor
    kept = 2 * shared
    if work.fp8 and adapter:
        kept += normed / tensor  # the norms' outputs once more, in 8 bits
    elif work.fp8:
        # Inputs of products are kept in 8 bits instead of 16, attention's output in both.
        kept -= (normed + shape.used_ffn - q) / tensor
    kept += 4 * shape.heads / tensor  # attention's sums of exponentials, in float32
    if adapter:
        kept += 2 * settings.adapter.rank * len(list(adapted_layers(work)))
    if adapter and settings.adapter.dropout:
        kept += 3 * sum(i for i, *_ in adapted_layers(work))  # the dropped input and its mask
    if settings.method == "dora":
        kept += 2 * sum(o for _, o, _ in adapted_layers(work)) / tensor  # for the magnitudes
    return kept


def kept_bytes(work: Workload) -> float:
    """As `layer_bytes`, without what finetune.recompute computes again.

    full: the layer's input alone is kept. selective: what the feed-forward part keeps beyond its
    input is not, nor are attention's scores where they are written out.
    """
    shape, tensor = work.shape, work.parallel.tensor
    whole = layer_bytes(work)
    if work.settings.recompute == "none":
        return whole
    adapter = work.settings.method != "sft"
    if not work.gpu:
        if work.settings.recompute == "full":
            return 4 * shape.hidden
        scores = 3 * shape.heads * work.rows.longest
        return whole - 4 * (3 * shape.ffn + 2 * shape.ffn * (1 + adapter) + scores) / tensor
    if work.settings.recompute == "full":
        return 2 * shape.hidden / tensor
    # In 8 bits where a full fine-tune in FP8 keeps inputs of products.
    eight = work.fp8 and not adapter
    normed = shape.hidden * (1 if eight else 2) / (1 if adapter else tensor)
    return whole - normed - (5 if eight else 6) * shape.ffn / tensor
