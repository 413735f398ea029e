"""Rows of the preference objectives: two token sequences each. Knows neither torch nor a model."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config.finetune import OBJECTIVES
from pipeline.training.batches import Ints, TokenRows

Side = tuple[Sequence[int], Sequence[int]]  # token ids and mask of equal length


@dataclass(frozen=True)
class PreferenceRows:
    """Rows of two sequences each, with what `TokenRows` has of rows of one.

    sequences: those of row i are 2i and 2i + 1. Of a pair they are the better and the worse answer
        to its prompt. Of a labelled answer, the second is another row's answer to its prompt, with
        which KTO estimates how far the model has moved from the reference.
    labels: [rows] int8, 1 for a good answer and 0 for a bad one; a pair has 1.
    """

    sequences: TokenRows
    labels: npt.NDArray[np.int8]

    @classmethod
    def of_pairs(cls, pairs: Iterable[Sequence[Side]]) -> "PreferenceRows":
        """From the better and the worse side of each row."""
        sides = [side for better, worse in pairs for side in (better, worse)]
        return cls(TokenRows.of(sides), np.ones(len(sides) // 2, np.int8))

    @classmethod
    def of_labels(cls, answers: Sequence[tuple[Side, int]], *, max_length: int) -> "PreferenceRows":
        """From answers with their labels. max_length: most tokens of a sequence.

        The other answer is of the row half the data set away, so that two answers to one prompt,
        which often follow each other, are not each other's. It is cut where it would not fit.
        """
        sides: list[Side] = []
        for i, (side, _) in enumerate(answers):
            other, _ = answers[(i + max(1, len(answers) // 2)) % len(answers)]
            sides += [side, _answered(side, other, max_length)]
        return cls(TokenRows.of(sides), np.array([label for _, label in answers], np.int8))

    def save(self, folder: Path) -> None:
        self.sequences.save(folder)
        np.save(folder / "labels.npy", self.labels)

    @classmethod
    def load(cls, folder: Path) -> "PreferenceRows":
        """Map the files that `save` wrote."""
        return cls(TokenRows.load(folder), np.load(folder / "labels.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Ints:
        """Tokens of the longer sequence of each row."""
        return self.sequences.lengths.reshape(-1, 2).max(axis=1, initial=0)

    @property
    def sha256(self) -> str:
        labels = np.ascontiguousarray(self.labels).tobytes()
        return hashlib.sha256(self.sequences.sha256.encode() + labels).hexdigest()

    def tokens(self, rows: Sequence[int] | Ints) -> int:
        """Tokens of both sequences of `rows`."""
        return self.sequences.tokens(both(np.asarray(rows, dtype=np.int64)))

    def trained_tokens(self, rows: Sequence[int] | Ints) -> int:
        """What the loss of `rows` is divided by: their number, not that of their tokens."""
        return len(rows)


def both(rows: Ints) -> Ints:
    """The numbers of both sequences of each row, one after the other; a negative row has none."""
    numbers = np.stack([2 * rows, 2 * rows + 1], axis=1)
    return np.where(rows[:, None] < 0, -1, numbers).reshape(-1)


def first(rows: Ints) -> Ints:
    """The numbers of the rows' first sequences."""
    return np.where(rows < 0, -1, 2 * rows)


def second(rows: Ints) -> Ints:
    """The numbers of the rows' second sequences."""
    return np.where(rows < 0, -1, 2 * rows + 1)


def _answered(side: Side, other: Side, max_length: int) -> Side:
    """The prompt of one side with the answer of another."""
    (ids, mask), (answer, trained) = side, other
    begin, start = list(mask).index(1), list(trained).index(1)
    end = start + max(1, max_length - begin)
    zeros = [0] * begin
    return [*ids[:begin], *answer[start:end]], [*zeros, *trained[start:end]]


Rows = TokenRows | PreferenceRows


def load_rows(folder: Path, objective: str) -> Rows:
    """Rows that a job saved, as its objective reads them."""
    kind = TokenRows if OBJECTIVES[objective].rows == "answers" else PreferenceRows
    return kind.load(folder)
