"""A training run as the planner sees it: the model, the settings and the rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.finetune import OBJECTIVES, FinetuneConfig, Objective, ParallelConfig
from pipeline.models.architecture import Shape
from pipeline.models.families.record import Layer
from pipeline.training.adapter_targets import targets


@dataclass(frozen=True)
class Rows:
    """Lengths of the training rows in tokens. known: from a prepared dataset, not a bound."""

    count: int | None
    longest: int
    mean: float
    validation_tokens: int
    known: bool


@dataclass(frozen=True)
class Workload:
    """One training run: the model, the settings, the rows. gpu: bfloat16 or float32."""

    shape: Shape
    settings: FinetuneConfig
    rows: Rows
    gpu: bool = True

    @property
    def parallel(self) -> ParallelConfig:
        return self.settings.parallel

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.settings.objective]

    @property
    def data(self) -> int:
        """Data-parallel ranks: the processes divided by the other sizes."""
        parallel = self.parallel
        ranks = parallel.tensor * parallel.pipeline * parallel.context
        return max(1, parallel.processes // ranks)

    @property
    def micro_tokens(self) -> int:
        """Positions of a micro-batch: rows padded to the longest, or one pack. A row that is longer
        than a pack makes it as long as the row (`pipeline.training.batches.pack`)."""
        if self.settings.pack_length:
            return max(self.settings.pack_length, self.rows.longest)
        return self.settings.micro_batch_size * self.objective.sides * self.rows.longest

    @property
    def microbatches(self) -> int:
        """Micro-batches of a data-parallel rank in a step."""
        settings = self.settings
        if not settings.pack_length:
            rows = settings.micro_batch_size * self.data
            return max(1, settings.global_batch_size // rows)
        packs = -(-settings.global_batch_size * self.rows.mean // settings.pack_length)
        return max(1, -(-int(packs) // self.data))

    @property
    def fp8(self) -> bool:
        return self.gpu and self.settings.precision == "fp8"

    def but(self, **changes: Any) -> "Workload":
        """The same with other settings, as `FinetuneConfig.but` takes them."""
        return replace(self, settings=self.settings.but(**changes))


def linear_layers(shape: Shape) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of a layer's products for a token, fused as Megatron has them."""
    for linear in shape.used_layer.linears:
        yield shape.size(linear.inputs), shape.rows(linear.outputs)


def linear_parameters(shape: Shape) -> int:
    """Weights of all layers' products, without embedding and output layer."""
    return sum(count * _weights(shape, layer) for layer, count in shape.layer_kinds)


def used_parameters(shape: Shape) -> int:
    """The weights of these products that one token goes through: of some experts alone."""
    kinds = ((shape.used_layer if x is shape.layer else x, n) for x, n in shape.layer_kinds)
    return sum(count * _weights(shape, layer) for layer, count in kinds)


def _weights(shape: Shape, layer: Layer) -> int:
    return sum(shape.size(linear.inputs) * shape.rows(linear.outputs) for linear in layer.linears)


def norm_parameters(shape: Shape) -> int:
    """Weights of all layers' norms."""
    sizes = [shape.size(norm.size) for norm in shape.layer.norms]
    return shape.layers * sum(sizes) * len(shape.norm_tensors)


def adapted_layers(work: Workload, layer: Layer | None = None) -> Iterator[tuple[int, int, int]]:
    """(inputs, outputs, trained outputs) of the products of a layer that have an adapter.

    An adapter on a part of a fused product has the product's outputs, and trains the part's.
    layer: None: what one token goes through.
    """
    shape = work.shape
    layer = layer or shape.used_layer
    found = targets(work.settings.adapter.target_modules, layer)
    for linear in layer.linears:
        if parts := found.get(linear.megatron):
            trained = sum(shape.rows(part.outputs) for part in parts)
            yield shape.size(linear.inputs), shape.rows(linear.outputs), trained


def saved_tables(work: Workload, *, first: bool = True, last: bool = True) -> int:
    """Weights of the embedding and the output layer that are trained whole beside an adapter.

    first, last: of the first and the last rank of pipeline parallel.
    """
    if work.settings.method == "sft":
        return 0
    saved = work.settings.adapter.modules_to_save
    tables = (first and "embed_tokens" in saved) + (last and "lm_head" in saved)
    return work.shape.vocab * work.shape.hidden * tables


def trained_parameters(work: Workload) -> int:
    """Weights that training changes. An adapter of rank r on [out, in] has r (in + out)."""
    if work.settings.method == "sft":
        return work.shape.parameters
    return saved_tables(work) + sum(
        count * _adapters(work, [(i, trained) for i, _, trained in adapted_layers(work, layer)])
        for layer, count in work.shape.layer_kinds
    )


def held_parameters(work: Workload) -> int:
    """Weights with a gradient and a state of the optimizer: an adapter on a part of a fused
    product has rows for all of it."""
    if work.settings.method == "sft":
        return work.shape.parameters
    return sum(
        count * _adapters(work, [(i, outputs) for i, outputs, _ in adapted_layers(work, layer)])
        for layer, count in work.shape.layer_kinds
    )


def _adapters(work: Workload, layers: list[tuple[int, int]]) -> int:
    """Weights of the adapters of a layer, from (inputs, outputs) of its products."""
    adapters = work.settings.adapter.rank * sum(i + o for i, o in layers)
    magnitudes = sum(o for _, o in layers) if work.settings.method == "dora" else 0
    return adapters + magnitudes
