"""Reads the experts of a model from config.json, in the ways that families say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.models.config_fields import Json, size_of, switch_of
from pipeline.models.families.record import Family, Routing


@dataclass(frozen=True)
class ExpertSizes:
    """The experts of a model.

    count: of a layer. per_token: how many a token is sent to. ffn, shared_ffn: columns of one, and
    of those that see every token (0: there are none). normalized: the weights of a token's experts
    add up to 1. layers: which layers have experts; the others are dense.
    """

    count: int
    per_token: int
    ffn: int
    shared_ffn: int
    normalized: bool
    layers: tuple[bool, ...]


def experts_of(file: Path, config: Json, family: Family, layers: int) -> ExpertSizes | None:
    """The experts of a model of so many layers; None if its family has none.

    Raises:
        DataError: a token is sent to more experts than there are, no layer has experts, or a field
            is missing or wrong.
    """
    routing = family.routing
    if routing is None:
        return None
    count = size_of(file, config, routing.count)
    chosen = size_of(file, config, "num_experts_per_tok")
    if chosen > count:
        raise DataError(
            f"{file}: num_experts_per_tok={chosen} is more than {routing.count}={count}: correct it"
        )
    normalized = routing.normalized
    ffn = size_of(file, config, routing.size or "intermediate_size")
    shared = size_of(file, config, routing.shared_size) if routing.shared_size else 0
    return ExpertSizes(
        count=count,
        per_token=chosen,
        ffn=ffn,
        shared_ffn=shared,
        normalized=switch_of(file, config, normalized)
        if isinstance(normalized, str)
        else normalized,
        layers=_layers_with_experts(file, config, routing, layers),
    )


def _layers_with_experts(
    file: Path, config: Json, routing: Routing, layers: int
) -> tuple[bool, ...]:
    """Which layers have experts: those that none of the family's keys makes dense."""
    found = [True] * layers
    if "decoder_sparse_step" in routing.dense:
        step = size_of(file, config, "decoder_sparse_step", 1)
        found = [(i + 1) % step == 0 for i in range(layers)]
    if "mlp_only_layers" in routing.dense:
        for i in _numbers(file, config, "mlp_only_layers", below=layers):
            found[i] = False
    if not any(found):
        raise DataError(
            f"{file}: no layer has experts ({', '.join(routing.dense)}): save it as a model of the "
            "family without experts"
        )
    return tuple(found)


def _numbers(file: Path, config: Json, name: str, *, below: int) -> list[int]:
    """A list of whole numbers from 0 on; empty if it is not there."""
    value = config.get(name)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < below for n in value
    ):
        raise DataError(
            f"{file}: {name}={value!r:.80} should be a list of whole numbers below {below}: "
            "correct it"
        )
    return value
