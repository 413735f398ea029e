"""How often the rows of each training file are in an epoch (data.mixture)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.data.row_filter import Kept


class Mixture:
    """Weights of training files: 2 has each row twice in an epoch, 0.5 every second row.

    A file that no part names has 1. Which rows a part of one keeps depends on the seed and on their
    content alone, as their split does.

    Args:
        parts: as data.mixture has them, "GLOB: WEIGHT".
        folder: the globs are below it.
        training: the training files, with the names that rows have for them.

    Raises:
        ConfigError: a part names no training file, or a file that an earlier part names too.
    """

    def __init__(self, parts: Sequence[str], folder: Path, training: Mapping[Path, str]) -> None:
        self.weights: dict[str, float] = {}
        self._parts: dict[str, str] = {}
        for part in parts:
            pattern, _, weight = part.rpartition(":")
            for name in _names(part, pattern.strip(), folder, training):
                if name in self.weights:
                    raise ConfigError(
                        f"data.mixture: {self._parts[name]!r} and {part!r} both name {name}: "
                        "give each file one weight"
                    )
                self.weights[name], self._parts[name] = float(weight), part

    def epoch(self, kept: Sequence[Kept]) -> Iterator[Kept]:
        """The rows, those of the training split as often as their file's weight says."""
        for row in kept:
            for _ in range(self.copies(row) if row.split == "train" else 1):
                yield row

    def copies(self, row: Kept) -> int:
        """How often a training row is in an epoch."""
        whole, part = divmod(self.weights.get(row.file, 1.0), 1)
        # The lower bits of the point; the upper ones decide its split.
        return int(whole) + (row.point * 2**16 % 1 < part)

    def statistics(self, kept: Sequence[Kept]) -> list[dict[str, Any]]:
        """By training file: its weight, its rows, how many rows of it are in an epoch, and their
        share of the tokens to train on."""
        rows, times, tokens = Counter[str](), Counter[str](), Counter[str]()
        for row in kept:
            if row.split == "train":
                copies = self.copies(row)
                rows[row.file] += 1
                times[row.file] += copies
                tokens[row.file] += copies * sum(sum(mask) for _, mask in row.sides)
        total = max(1, tokens.total())
        return [
            {
                "file": name,
                "weight": self.weights.get(name, 1.0),
                "rows": rows[name],
                "rows_in_an_epoch": times[name],
                "share_of_trained_tokens": round(tokens[name] / total, 6),
            }
            for name in rows
        ]


def _names(part: str, pattern: str, folder: Path, training: Mapping[Path, str]) -> list[str]:
    """The names of the training files that a part matches."""
    try:
        found = [training[file] for file in sorted(folder.glob(pattern)) if file in training]
    except (OSError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"data.mixture: {pattern!r} must be a name or glob below {folder} ({error})"
        ) from error
    if not found:
        known = ", ".join(str(file.relative_to(folder)) for file in list(training)[:5])
        raise ConfigError(f"data.mixture: {part!r} names no training file: those are {known}")
    return found
