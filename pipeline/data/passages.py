"""Passages that several rows share, and how much of a text is outside of them.

Windows of WINDOW letters are hashed. Of one in SAMPLE of them, the number of texts that have it is
counted. Its first letters alone decide whether a window is counted, so the same passage gives the
same windows wherever it stands, as in winnowing (Schleimer et al. 2003).
"""

import random

import numpy as np
import numpy.typing as npt

SHINGLE = 3  # letters
WINDOW = 24  # letters, a multiple of SHINGLE
SAMPLE = np.uint64(4)  # one window in so many is counted
# Texts that share a passage from which it distinguishes none of them. A question, its leak and a
# near duplicate of it may share one.
SHARED = 4
SLOTS = np.uint64(2**25)  # counters, of one byte each
_REMEMBERED = 50_000  # texts whose letters were counted
_RANDOM = random.Random(1)
_OFFSETS = np.arange(0, WINDOW, SHINGLE)
_WEIGHTS = np.array([_RANDOM.getrandbits(64) | 1 for _ in _OFFSETS], np.uint64)

Hashes = npt.NDArray[np.uint64]


def shingles(text: str) -> Hashes:
    """A hash for each SHINGLE letters of a text, at least one."""
    letters = np.frombuffer(text.ljust(SHINGLE).encode("utf-32-le"), np.uint32).astype(np.uint64)
    count = len(letters) - SHINGLE + 1
    # Code points are below 2 ** 21, so three fit into 64 bits.
    packed = letters[:count]
    for i in range(1, SHINGLE):
        packed = packed << np.uint64(21) | letters[i : i + count]
    return mix(packed)


def mix(values: Hashes) -> Hashes:
    """Spread every bit over all 64 (the finalizer of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ values >> np.uint64(33)) * np.uint64(factor)
    return values ^ values >> np.uint64(33)


class Passages:
    """Counts of windows, of all texts that were added; the same text counts once."""

    def __init__(self) -> None:
        self._counts = np.zeros(int(SLOTS), np.uint8)
        self._added: set[int] = set()
        self._unshared: dict[str, int] = {}
        self._most = 0

    def add(self, text: str) -> None:
        if len(text) < WINDOW or (key := hash(text)) in self._added:
            return
        self._added.add(key)
        slots = _windows(shingles(text))[1]
        counts = self._counts[slots] + np.uint8(1)  # the same slot twice in a text gets one
        counts[counts == 0] = 255
        self._counts[slots] = counts
        self._most = max(self._most, int(counts.max(initial=0)))

    def unshared(self, text: str) -> int:
        """Letters in no passage that SHARED or more texts have."""
        if (known := self._unshared.get(text)) is None:
            known = len(text)
            if len(text) >= WINDOW:
                covered = self._covered(shingles(text), SHARED)
                known = len(text) - int(np.count_nonzero(covered))
            if len(self._unshared) >= _REMEMBERED:
                self._unshared.clear()
            self._unshared[text] = known
        return known

    def distinguishing(self, hashes: Hashes, most: int) -> Hashes:
        """The shingles outside of passages that `most` texts have; all if few are left."""
        if self._most < most or len(hashes) <= WINDOW:
            return hashes
        left = hashes[~self._covered(hashes, most)[: len(hashes)]]
        return left if len(left) >= WINDOW // 2 else hashes

    def _covered(self, hashes: Hashes, least: int) -> npt.NDArray[np.bool_]:
        """For each letter, whether a window that `least` texts have covers it."""
        starts, slots = _windows(hashes)
        starts = starts[self._counts[slots] >= least]
        edges = np.zeros(len(hashes) + SHINGLE, np.int32)
        np.add.at(edges, starts, 1)
        np.add.at(edges, starts + WINDOW, -1)
        return np.cumsum(edges)[: len(hashes) + SHINGLE - 1] > 0


def _windows(hashes: Hashes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where the sampled windows start, and their counters, by the hashes of shingles."""
    starts = np.flatnonzero(hashes[: max(0, len(hashes) - WINDOW + SHINGLE)] % SAMPLE == 0)
    windows = (hashes[starts[:, None] + _OFFSETS] * _WEIGHTS).sum(axis=1, dtype=np.uint64)
    return starts, (mix(windows) % SLOTS).astype(np.intp)
