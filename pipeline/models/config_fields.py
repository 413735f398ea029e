"""Reads a field of config.json, or refuses it in one line that names the file and the field.

    size_of(file, config, "hidden_size"); number_of(...); switch_of(...)

Knows no model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError

Json = Mapping[str, Any]

_LARGEST = 1e38  # of a number: what float32 holds
_LARGEST_SIZE = 2**31 - 1  # of a size, in elements
_MOST_LAYERS = 10_000


def size_of(
    file: Path, config: Json, name: str, default: int | None = None, within: str = ""
) -> int:
    """A whole number above 0. within: the section that it is in, for the message."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(
            f"{file}: {within}{name}={value!r:.80} should be a whole number above 0: correct it"
        )
    if value > _MOST_LAYERS and (name == "num_hidden_layers" or value > _LARGEST_SIZE):
        raise DataError(f"{file}: {within}{name}={value:.3g} is too large: correct it")
    return value


def switch_of(file: Path, config: Json, name: str, default: bool = False) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{file}: {name}={value!r:.80} should be true or false: correct it")
    return default if value is None else value


def number_of(
    file: Path,
    config: Json,
    name: str,
    default: float | None = None,
    *,
    positive: bool = False,
    below: float = _LARGEST,
    within: str = "",
) -> float:
    """A number that is not negative. positive: 0 is refused too. within: as in `size_of`."""
    value = config.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < below or (positive and value == 0):
        least = "above 0" if positive else "from 0"
        raise DataError(
            f"{file}: {within}{name}={value!r} should be a number {least}, below {below:g}: "
            "correct it"
        )
    return float(value)
