"""What the arithmetic needs to know of a training run: sizes, batch, layout."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.config.finetune import FinetuneConfig
from pipeline.models.architecture import Shape
from pipeline.training.job import Job


@dataclass(frozen=True)
class Rows:
    """Lengths in tokens. known: from a prepared dataset, not a bound from the settings."""

    count: int | None
    longest: int
    mean: float
    validation_tokens: int
    known: bool


@dataclass(frozen=True)
class Workload:
    """One training run. Batch sizes in rows, lengths in tokens; gpu: bfloat16 or float32."""

    shape: Shape
    method: str
    rank: int
    dropout: float
    rows: Rows
    global_batch_size: int
    micro_batch_size: int
    pack_length: int
    precision: str
    processes: int
    tensor: int
    pipeline: int
    context: int
    gpu: bool = True

    @property
    def data(self) -> int:
        """Data-parallel ranks: what the other sizes leave of the processes."""
        return max(1, self.processes // (self.tensor * self.pipeline * self.context))

    @property
    def micro_tokens(self) -> int:
        """Positions in a micro-batch: rows padded to the longest, or one pack, which a row that is
        longer makes as long as itself (`pipeline.training.batches.pack`)."""
        if self.pack_length:
            return max(self.pack_length, self.rows.longest)
        return self.micro_batch_size * self.rows.longest

    @property
    def microbatches(self) -> int:
        """Micro-batches of a data-parallel rank in a step."""
        if not self.pack_length:
            return max(1, self.global_batch_size // (self.micro_batch_size * self.data))
        packs = -(-self.global_batch_size * self.rows.mean // self.pack_length)
        return max(1, -(-int(packs) // self.data))

    @property
    def fp8(self) -> bool:
        return self.gpu and self.precision == "fp8"

    def but(self, **changes: object) -> "Workload":
        return replace(self, **changes)  # type: ignore[arg-type]


def of_settings(settings: FinetuneConfig, shape: Shape, rows: Rows, *, gpu: bool) -> Workload:
    parallel = settings.parallel
    return Workload(
        shape=shape,
        method=settings.method,
        rank=settings.adapter.rank,
        dropout=settings.adapter.dropout,
        rows=rows,
        global_batch_size=settings.global_batch_size,
        micro_batch_size=settings.micro_batch_size,
        pack_length=settings.pack_length or 0,
        precision=settings.precision,
        processes=parallel.processes,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        context=parallel.context,
        gpu=gpu,
    )


def of_job(job: Job, shape: Shape, *, longest: int, gpu: bool) -> Workload:
    """A running job's. longest: tokens of its longest row."""
    return Workload(
        shape=shape,
        method=job.method,
        rank=job.rank,
        dropout=job.dropout,
        rows=Rows(None, longest, longest, 0, known=True),
        global_batch_size=job.global_batch_size,
        micro_batch_size=job.micro_batch_size,
        pack_length=job.pack_length,
        precision=job.precision,
        processes=job.processes,
        tensor=job.tensor,
        pipeline=job.pipeline,
        context=job.context,
        gpu=gpu,
    )


def linear_layers(shape: Shape) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of the products of a layer, fused as Megatron has them."""
    for linear in shape.layer.linears:
        yield shape.size(linear.inputs), sum(shape.size(part.outputs) for part in linear.parts)


def linear_parameters(shape: Shape) -> int:
    """Weights of all layers' products, without embedding and output layer."""
    return shape.layers * sum(i * o for i, o in linear_layers(shape))


def trained_parameters(work: Workload) -> int:
    """Weights with a gradient. An adapter of rank r on [out, in] has r (in + out)."""
    if work.method == "sft":
        return work.shape.parameters
    layers = list(linear_layers(work.shape))
    adapters = work.rank * sum(i + o for i, o in layers)
    magnitudes = sum(o for _, o in layers) if work.method == "dora" else 0
    return work.shape.layers * (adapters + magnitudes)
