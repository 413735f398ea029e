"""How config.json stretches rotary frequencies beyond the context of a model's training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.core.errors import DataError
from pipeline.models.config_fields import Json, number_of, size_of
from pipeline.models.families.record import Family


@dataclass(frozen=True)
class Llama3Rope:
    """Rotary frequencies stretched as Llama 3.1 does (transformers, `rope_type: llama3`)."""

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class Rope:
    """Another kind, whose frequencies transformers computes of config.json.

    factor: by which the context is longer than the original one; None: the kind has factors for
        each frequency. original_max_positions: None: max_position_embeddings.
    """

    kind: str
    factor: float | None
    original_max_positions: int | None


# Keys that transformers requires of each kind (modeling_rope_utils.py).
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}


def rope_scaling_of(file: Path, config: Json, family: Family) -> Llama3Rope | Rope | None:
    """`rope_scaling`; None without one, and where its kind is "default".

    Raises:
        DataError: it is not an object, is of a kind that the family does not have, or has a wrong
            number.
    """
    scaling = config.get("rope_scaling")
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
    if isinstance(scaling, dict) and kind != scaling.get("type", kind):
        raise DataError(
            f"{file}: rope_scaling.rope_type={kind!r:.80} and type={scaling['type']!r:.80} "
            "disagree: remove one"
        )
    if not isinstance(scaling, dict) or not isinstance(kind, str | None):
        raise DataError(f"{file}: rope_scaling={scaling!r:.80} should be an object: correct it")
    if kind == "default":
        return None
    if kind not in family.ropes:
        known = ", ".join(family.ropes)
        raise DataError(
            f"{file}: rope_scaling of type {kind!r} is not supported for {family.name}: "
            + (f"use a model without it, or with one of {known}" if known else family.no_ropes)
        )
    if kind == "llama3":
        return _llama3(file, scaling)
    if missing := [name for name in _REQUIRED[kind] if name not in scaling]:
        raise DataError(f"{file}: rope_scaling of type {kind!r} has no {missing[0]}: add it")
    if kind == "longrope":
        _check_factors(file, scaling)
    original = scaling.get(
        "original_max_position_embeddings", config.get("original_max_position_embeddings")
    )
    return Rope(
        kind=kind,
        factor=(
            number_of(file, scaling, "factor", positive=True, within="rope_scaling.")
            if scaling.get("factor") is not None
            else None
        ),
        original_max_positions=(
            size_of(
                file,
                {"original_max_position_embeddings": original},
                "original_max_position_embeddings",
            )
            if original is not None
            else None
        ),
    )


def _llama3(file: Path, scaling: Json) -> Llama3Rope:
    low, high = (
        number_of(file, scaling, f"{band}_freq_factor", positive=True, within="rope_scaling.")
        for band in ("low", "high")
    )
    if low >= high:
        raise DataError(
            f"{file}: rope_scaling.low_freq_factor={low:g} should be below high_freq_factor="
            f"{high:g}: correct it"
        )
    return Llama3Rope(
        factor=number_of(file, scaling, "factor", positive=True, within="rope_scaling."),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=size_of(
            file, scaling, "original_max_position_embeddings", within="rope_scaling."
        ),
    )


def _check_factors(file: Path, scaling: Json) -> None:
    for name in _REQUIRED["longrope"]:
        factors = scaling[name]
        if not isinstance(factors, list) or not factors:
            raise DataError(
                f"{file}: rope_scaling.{name} should be a list of numbers, one for each rotary "
                "frequency: correct it"
            )
        for number, value in enumerate(factors):
            key = f"{name}[{number}]"
            number_of(file, {key: value}, key, positive=True, within="rope_scaling.")
