"""Time of a training step and of a whole run, from counted operations and measured rates.

A matrix product of a token with N weights is 2 N operations forward, as many for the gradient of
its input and, where the weights are trained, as many again for theirs (Kaplan et al. 2020,
arXiv:2001.08361): 4 N a token with a frozen base, 6 N without. Attention with a causal mask adds
half of 4 * heads * head size * length a layer forward, and twice that backward. Collectives move
what Korthikanti et al. 2022 (arXiv:2205.05198, section 4.2) count; the pipeline's bubble is
(stages - 1) / micro-batches of the work (Narayanan et al. 2021, arXiv:2104.04473). Communication is
assumed not to overlap with computation, as this code's settings do not ask for it.

One rate turns operations into seconds: the share of the data sheet's rate that a whole training
step reached on one H200 (bench/gpu_training.py). On other cards the same share is assumed.
"""

from dataclasses import dataclass

from pipeline.planner.accelerators import LINK_SHARE, NETWORK, Accelerator
from pipeline.planner.memory import bytes_a_trained_parameter
from pipeline.planner.workload import (
    Workload,
    held_parameters,
    linear_layers,
    linear_parameters,
    used_parameters,
)
from pipeline.training.adapter_targets import MLP, group_of

# Of the data sheet's dense rate, over a whole step at Llama-3-8B's shape and 4096 tokens.
BF16_SHARE = 0.535  # an adapter: 15,696 to 16,159 tokens/s
SFT_SHARE = 0.58  # every weight of 22 layers: 16,579 and 17,322; gradients' products are larger
# Of the layers' products alone, with an adapter 20,898 to 22,167; the rest stays in bfloat16.
FP8_SHARE = 0.39
# A layer's forward and backward pass has some 60 kernels, and a step cannot be quicker than the
# host starts them: in FP8 with one row of 4096 tokens a micro-batch 18,155 tokens/s, and 14,500 on
# a slower host.
HOST_A_LAYER = 0.007


@dataclass(frozen=True)
class Step:
    """Seconds of one step, by cause. tokens: of the global batch, padding included."""

    computing: float
    tensor: float
    context: float
    pipeline: float
    data: float
    tokens: float
    host_bound: bool

    @property
    def seconds(self) -> float:
        return self.computing + self.tensor + self.context + self.pipeline + self.data


@dataclass(frozen=True)
class Volumes:
    """Bytes that one rank sends to others in a step."""

    tensor: float
    context: float
    pipeline: float
    data: float


def step(work: Workload, on: Accelerator, *, node: int) -> Step | None:
    """One step, or None if the card's rate is not known. node: GPUs of one machine.

    Ranks are numbered with tensor parallel innermost, then context, data and pipeline (Megatron-
    Core's default order), so that a group of neighbours up to `node` stays in one machine.
    """
    if on.bf16 is None:
        return None
    parallel = work.parallel
    tokens = work.settings.global_batch_size * work.rows.mean
    shared = work.data * parallel.context * parallel.tensor * parallel.pipeline
    linear, other = operations(work)
    linear_rate, rate = rates(work, on)
    computing = tokens * (linear / linear_rate + other / rate) / shared
    layers = work.shape.layers / parallel.pipeline
    floor = work.microbatches * layers * HOST_A_LAYER if on.gpu else 0.0
    host_bound = computing < floor
    computing = max(computing, floor)
    moved = volumes(work)
    places = {  # ranks that a group spans, one machine's or not
        "tensor": parallel.tensor,
        "context": parallel.tensor * parallel.context,
        "pipeline": parallel.processes,
        "data": parallel.tensor * parallel.context * work.data,
    }
    outside = NETWORK if on.gpu else on.link
    taken = {
        name: getattr(moved, name) / ((on.link if span <= node else outside) * LINK_SHARE)
        for name, span in places.items()
    }
    idle = (parallel.pipeline - 1) / work.microbatches
    taken["pipeline"] += idle * (computing + taken["tensor"] + taken["context"])
    return Step(computing=computing, tokens=tokens, host_bound=host_bound, **taken)


def volumes(work: Workload) -> Volumes:
    """Bytes that a rank sends in a step, by the group that it sends to.

    Tensor parallel: two all-gathers and two reduce-scatters of a layer's input each way, and two
    more for what an adapter reads or a trained weight's gradient needs. Context parallel: keys and
    values go round forward, and with their gradients backward. Pipeline: a layer's output and its
    gradient. Data parallel: gradients are summed and, optimizer states being shared, the new
    weights gathered.
    """
    shape, element = work.shape, 2 if work.gpu else 4
    parallel = work.parallel
    layers = shape.layers / parallel.pipeline
    tokens = work.settings.global_batch_size * work.rows.mean / (work.data * parallel.context)
    hidden = tokens * shape.hidden * element
    keys = tokens * 2 * shape.kv_heads * shape.head_dim * element / parallel.tensor
    ranks = work.data * parallel.context
    gradient, _ = bytes_a_trained_parameter(work)
    held = held_parameters(work) / (parallel.tensor * parallel.pipeline)
    return Volumes(
        tensor=10 * layers * hidden * (parallel.tensor - 1) / parallel.tensor,
        context=3 * layers * keys * (parallel.context - 1),
        pipeline=2 * hidden / parallel.tensor * (parallel.pipeline > 1),
        data=held * (gradient + element) * (ranks - 1) / ranks,
    )


def rates(work: Workload, on: Accelerator) -> tuple[float, float]:
    """Operations per second: of the layers' products, and of everything else."""
    assert on.bf16 is not None
    share = SFT_SHARE if work.settings.method == "sft" else BF16_SHARE
    rate = on.bf16 * share if on.gpu else on.bf16
    if work.fp8 and on.fp8:
        return max(rate, on.fp8 * FP8_SHARE), rate
    return rate, rate


def rate_in_words(work: Workload, on: Accelerator) -> str:
    """The rate that a plan's time is calculated from."""
    linear, rate = rates(work, on)
    if not on.gpu:
        return f"rate: {rate / 1e9:.0f} GFLOP/s ({on.source})"
    assert on.bf16 is not None
    first = f"rate: {rate / 1e12:.0f} TFLOP/s in bfloat16"
    if linear != rate:
        first += f", {linear / 1e12:.0f} in FP8"
    here = "H200" in on.name
    origin = "as one H200 reached" if here else "the share of the peak that one H200 reached"
    return f"{first}, {origin}; peak {on.bf16 / 1e12:.0f} ({on.source})"


def operations(work: Workload) -> tuple[float, float]:
    """Operations per token, forward and backward: of the layers' products, and of the rest."""
    shape = work.shape
    passes = 6 if work.settings.method == "sft" else 4
    again = _computed_again(work)
    linear = (passes + 2 * again) * used_parameters(shape)
    output = passes * shape.vocab * shape.hidden
    used = used_parameters(shape) / linear_parameters(shape)  # of experts, a token's alone
    adapter = 0 if work.settings.method == "sft" else 6 * held_parameters(work) * used
    # In a pack each row attends to itself alone. Lengths vary, and long rows have most of the work:
    # about twice the mean, as in an exponential distribution.
    seen = min(2 * work.rows.mean, work.rows.longest) if work.rows.known else work.rows.longest
    causal = 0.5 if work.gpu else 1.0
    scores = 1 if work.settings.recompute == "full" or (again and not work.gpu) else 0
    attention = (3 + scores) * shape.layers * 4 * shape.heads * shape.head_dim * seen * causal
    return linear, output + adapter + attention


def _computed_again(work: Workload) -> float:
    """Share of the layers' products whose forward pass runs twice (finetune.recompute)."""
    if work.settings.recompute != "selective":
        return float(work.settings.recompute == "full")
    layer = work.shape.used_layer
    sizes = [inputs * outputs for inputs, outputs in linear_layers(work.shape)]
    again = [size for size, one in zip(sizes, layer.linears, strict=True) if group_of(one) == MLP]
    return sum(again) / sum(sizes)


@dataclass(frozen=True)
class Duration:
    """Seconds of the finetune stage: until the first step, of steps, validation, checkpoints.

    reference: of the base's log-probabilities, before the first step.
    """

    start: float
    reference: float
    steps: float
    validation: float
    checkpoints: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


# Until the first step of 8 B on one H200, 16.7 to 17.9 s: 9 s of imports, and 9 to read 16 GB. On
# two slow CPU cores imports take 20 s.
IMPORTS, CPU_IMPORTS, READING = 9.0, 20.0, 16.06e9 / 9.0
WRITING = 0.9e9  # bytes/s; a checkpoint of 94 GB took 105 s, and `cp` of 16 GB 11.2 to 20.6 s


def run(
    work: Workload,
    one: Step,
    *,
    steps: int,
    validate_every: int,
    checkpoint_every: int,
    checkpoint_bytes: float,
) -> Duration:
    """The whole run. checkpoint_bytes: of one checkpoint."""
    element = 2 if work.gpu else 4
    validations = 1 + (steps - 1) // validate_every
    forward = 1 / 3 if work.settings.method == "sft" else 1 / 2
    # KTO reads another answer to each prompt too, forward only (training/nemo/objectives.py).
    more = forward if work.objective.rows == "labels" else 0.0
    read = steps * work.settings.global_batch_size
    once = min(1.0, (work.rows.count or read) / read)
    passes = (forward + more) * once if work.objective.compares else 0.0
    reading = element * work.shape.parameters / READING if work.gpu else 0.0
    return Duration(
        start=(IMPORTS if work.gpu else CPU_IMPORTS) + reading,
        reference=steps * one.seconds * passes,
        steps=steps * one.seconds * (1 + more),
        validation=validations
        * work.rows.validation_tokens / one.tokens * one.seconds * forward,
        checkpoints=(1 + (steps - 1) // checkpoint_every) * checkpoint_bytes / WRITING,
    )  # fmt: skip
