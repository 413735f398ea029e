"""Token rows, and which of them a training step sees: a pure function of (seed, step).

No state is kept between steps, so a run that was killed resumes with exactly the samples that it
would have seen, and any number of data-parallel ranks see the same global batch. Knows neither
torch nor a model.
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, concatenated in one array, so that they can be mapped from a file.

    ids: [tokens] int32. mask: [tokens] int8, 1 for each token to learn. starts: [rows + 1] int64.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.int8]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[tuple[Sequence[int], Sequence[int]]]) -> "TokenRows":
        """From (ids, mask) pairs of equal length."""
        pairs = list(rows)
        lengths = np.array([0] + [len(ids) for ids, _ in pairs], dtype=np.int64)
        ids = np.array([i for ids, _ in pairs for i in ids], dtype=np.int32)
        mask = np.array([m for _, mask in pairs for m in mask], dtype=np.int8)
        return cls(ids, mask, np.cumsum(lengths))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "mask", "starts"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "TokenRows":
        """Map the files that `save` wrote; rows are read when they are needed."""
        return cls(
            *(np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("ids", "mask", "starts"))
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for array in (self.ids, self.mask, self.starts):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def tokens(self, rows: Sequence[int] | Ints) -> int:
        """Tokens of `rows`, without padding."""
        numbers = np.asarray(rows, dtype=np.int64)
        return int((self.starts[numbers + 1] - self.starts[numbers]).sum())

    def trained_tokens(self, rows: Sequence[int] | Ints) -> int:
        """Tokens of `rows` that count in the loss. A row's first does not: nothing predicts it."""
        return sum(int(self.mask[self.starts[r] + 1 : self.starts[r + 1]].sum()) for r in rows)


@dataclass(frozen=True)
class SampleOrder:
    """Which rows make the global batch of a step.

    Epochs are permutations that follow one another without a gap. Rows of eight steps are sorted
    by length into batches, which saves padding; the eight batches are then shuffled.

    lengths: tokens of each row. batch_size: rows of a global batch.
    """

    lengths: Ints
    batch_size: int
    seed: int

    WINDOW = 8

    def rows(self, step: int) -> Ints:
        """Row numbers of the global batch of `step` (from 0): [batch_size]."""
        return self._window(step // self.WINDOW)[step % self.WINDOW]

    def sha256(self, steps: int) -> str:
        """Identity of all samples of the first `steps` steps, in order."""
        digest = hashlib.sha256()
        for step in range(steps):
            digest.update(self.rows(step).tobytes())
        return digest.hexdigest()

    @lru_cache(maxsize=2)  # noqa: B019 - two windows, of an object that lives as long as the run
    def _window(self, window: int) -> Ints:
        count = self.WINDOW * self.batch_size
        samples = np.arange(window * count, (window + 1) * count)
        epochs, places = np.divmod(samples, len(self.lengths))
        rows = np.concatenate([self._epoch(int(e))[places[epochs == e]] for e in np.unique(epochs)])
        grouped = rows[np.argsort(self.lengths[rows], kind="stable")]
        batches = grouped.reshape(self.WINDOW, self.batch_size)
        return batches[np.random.default_rng([self.seed, 1, window]).permutation(self.WINDOW)]

    def _epoch(self, epoch: int) -> Ints:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.lengths))

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length, as a causal language model is trained on them.

    tokens, labels: [rows, length] int64; labels are the tokens shifted by one.
    loss_mask: [rows, length] float32, 1 where the label counts.
    """

    tokens: Ints
    labels: Ints
    loss_mask: npt.NDArray[np.float32]


def collate(rows: TokenRows, chosen: Ints, *, length: int, part: slice = slice(None)) -> Batch:
    """The batch of a `part` of the `chosen` rows; a negative row number is all padding.

    length: positions to pad to, at least those of the longest row less one. Padding is token 0: no
    earlier token attends to it, and it does not count in the loss.
    """
    chosen = chosen[part]
    tokens = np.zeros((len(chosen), length), dtype=np.int64)
    labels = np.zeros((len(chosen), length), dtype=np.int64)
    loss_mask = np.zeros((len(chosen), length), dtype=np.float32)
    for place, row in enumerate(chosen):
        if row < 0:
            continue
        start, end = rows.starts[row], rows.starts[row + 1]
        count = end - start - 1
        tokens[place, :count] = rows.ids[start : end - 1]
        labels[place, :count] = rows.ids[start + 1 : end]
        loss_mask[place, :count] = rows.mask[start + 1 : end]
    return Batch(tokens, labels, loss_mask)


def padded_length(rows: TokenRows, chosen: Ints, multiple: int) -> int:
    """Positions that the longest of the `chosen` rows needs, rounded up to a multiple."""
    longest = int(max(rows.starts[r + 1] - rows.starts[r] for r in chosen if r >= 0)) - 1
    return max(1, -(-longest // multiple)) * multiple


@dataclass(frozen=True)
class PackedBatch(Batch):
    """Rows concatenated in packs: each a line of `tokens`, padded on the right to one length.

    positions: [packs, length] int64, from 0 in each row.
    boundaries: [packs, most rows + 2] int32, where rows begin and the pack ends, with the padding
        as a last row; then -1.
    """

    positions: Ints
    boundaries: npt.NDArray[np.int32]


def pack(lengths: Ints, chosen: Ints, *, pack_length: int, ranks: int) -> list[Ints]:
    """Put the `chosen` rows into packs of nearly the same size, as few as hold them.

    Each row, longest first, goes into the pack that holds least (Graham's LPT rule), so that packs
    differ little and a step needs little padding. A row longer than a pack makes all packs of the
    step as long as itself, as they are padded to the longest.

    Args:
        lengths: tokens of every row; a row takes one position fewer.
        chosen: row numbers; negative ones are left out.
        pack_length: most positions of a pack, unless a row is longer.
        ranks: the number of packs is a multiple of it, so that data-parallel ranks share evenly.
    """
    rows = chosen[chosen >= 0]
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    sizes = [int(n) - 1 for n in lengths[rows]]
    pack_length = max([pack_length, *sizes[:1]])
    count = max(1, -(-sum(sizes) // pack_length))
    count = -(-count // ranks) * ranks
    while True:
        heap = [(0, place) for place in range(count)]
        packs: list[list[int]] = [[] for _ in range(count)]
        fits = True
        for row, size in zip(rows, sizes, strict=True):
            filled, place = heapq.heappop(heap)
            fits = fits and filled + size <= pack_length
            packs[place].append(int(row))
            heapq.heappush(heap, (filled + size, place))
        if fits:
            return [np.array(numbers, dtype=np.int64) for numbers in packs]
        count += ranks


def collate_packs(rows: TokenRows, packs: Sequence[Ints], *, length: int) -> PackedBatch:
    """The batch of some packs, padded to `length` positions."""
    shape = (len(packs), length)
    tokens, labels, positions = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    loss_mask = np.zeros(shape, dtype=np.float32)
    most = max(len(numbers) for numbers in packs)
    boundaries = np.full((len(packs), most + 2), -1, dtype=np.int32)
    for place, numbers in enumerate(packs):
        at, bounds = 0, [0]
        for row in numbers:
            start, end = rows.starts[row], rows.starts[row + 1]
            here = slice(at, at + int(end - start) - 1)
            tokens[place, here] = rows.ids[start : end - 1]
            labels[place, here] = rows.ids[start + 1 : end]
            loss_mask[place, here] = rows.mask[start + 1 : end]
            positions[place, here] = np.arange(end - start - 1)
            at = here.stop
            bounds.append(at)
        if at < length:
            positions[place, at:] = np.arange(length - at)
            bounds.append(length)
        boundaries[place, : len(bounds)] = bounds
    return PackedBatch(tokens, labels, loss_mask, positions, boundaries)


def packed_length(lengths: Ints, packs: Sequence[Ints], multiple: int) -> int:
    """Positions that the largest of the packs needs, rounded up to a multiple."""
    largest = max(int(lengths[numbers].sum()) - len(numbers) for numbers in packs)
    return max(1, -(-largest // multiple)) * multiple


def validation_batches(count: int, batch_size: int) -> list[Ints]:
    """All row numbers in order, in batches of exactly `batch_size`; -1 fills up the last one."""
    full = -(-count // batch_size) * batch_size
    numbers = np.full(full, -1, dtype=np.int64)
    numbers[:count] = np.arange(count)
    return list(numbers.reshape(-1, batch_size))
