"""Duplicates, exact and near; test questions in training data; and conflicting answers.

MinHash over three-letter shingles of the user's turns (Broder 1997), in bands (Leskovec et al.,
Mining of Massive Datasets, chapter 3), finds candidates for near duplicates. Each candidate is then
compared turn by turn. So the time grows with the number of rows, not with its square. Two texts of
similarity 0.9 share a band in about 97 of 100 cases, of 0.97 almost always. A paraphrase counts
neither as a duplicate nor as a leak. Knows neither files nor tokens.
"""

import hashlib
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from pipeline.models.chat.messages import Message

BANDS, ROWS, SHINGLE = 24, 3, 3
# Boilerplate fills a band's bucket with rows that are alike there only: most rows to compare.
MAX_BUCKET = 64
_EDGES = ".,;:!?…'\"`()[]{}«»“”‘’„–—"
_RANDOM = random.Random(0)  # its bits are the same in every version of Python
_FACTORS = np.array([[_RANDOM.getrandbits(64) | 1] for _ in range(BANDS * ROWS)], np.uint64)
_OFFSETS = np.array([[_RANDOM.getrandbits(64)] for _ in range(BANDS * ROWS)], np.uint64)
_MIXERS = np.array([[_RANDOM.getrandbits(64) | 1 for _ in range(ROWS)]], np.uint64)


def normalise(text: str) -> str:
    """The text in lower case, without punctuation around words, with single spaces."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    stripped = [word.strip(_EDGES) for word in words]
    return " ".join(word for word in stripped if word) or " ".join(words)


def are_alike(one: str, other: str, threshold: float) -> bool:
    """Whether two normalised texts have the same numbers and at least this similarity.

    Similarity is 1 - (letters to insert or delete) / (letters of both).
    """
    if one == other:
        return True
    if fuzz.ratio(one, other, score_cutoff=100 * threshold) == 0:
        return False
    return re.findall(r"\d+", one) == re.findall(r"\d+", other)


@dataclass(frozen=True)
class Match:
    """An earlier row that is a duplicate; `exact` if it is the same to the letter."""

    place: str
    exact: bool


@dataclass(frozen=True)
class _Exchange:
    """A question of a conversation and its answer, normalised."""

    context: tuple[str, ...]  # the user's earlier turns
    question: str
    answer: str


class Duplicates:
    """Rows added so far. A near duplicate has the same roles, and each of its turns is alike."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._exact: dict[bytes, str] = {}
        self._rows: list[tuple[str, list[tuple[str, str]]]] = []
        self._index = _NearIndex(threshold)

    def add(self, messages: Sequence[Message], place: str) -> Match | None:
        """The earlier row that this one duplicates. Otherwise adds this one and returns None."""
        plain = [(m["role"], " ".join(m["content"].split())) for m in messages]
        key = hashlib.sha256(repr(plain).encode()).digest()
        if key in self._exact:
            return Match(self._exact[key], exact=True)
        self._exact[key] = place
        turns = [(role, normalise(content)) for role, content in plain]
        # Two rows that are alike in each turn are also alike in the user's turns together.
        asked = "\n".join(content for role, content in turns if role == "user")
        for candidate in self._index.find(asked):
            earlier, other = self._rows[candidate]
            if len(turns) == len(other) and all(
                a[0] == b[0] and are_alike(a[1], b[1], self._threshold)
                for a, b in zip(turns, other, strict=True)
            ):
                return Match(earlier, exact=False)
        self._index.add(asked)
        self._rows.append((place, turns))
        return None


class Leaks:
    """Test questions, to be found again in training rows.

    A training row leaks if a user turn is like a test row's last question, and either the turns
    before it or the answer are alike too ("yes, please" alone is not a leak).
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._tests: list[tuple[str, _Exchange]] = []
        self._index = _NearIndex(threshold)

    def add_test(self, messages: Sequence[Message], place: str) -> None:
        *_, last = _exchanges(messages)
        self._index.add(last.question)
        self._tests.append((place, last))

    def find(self, messages: Sequence[Message]) -> Match | None:
        """The test row whose question this training row contains, or None."""
        for exchange in _exchanges(messages):
            for candidate in self._index.find(exchange.question):
                place, test = self._tests[candidate]
                if self._leaks(exchange, test):
                    return Match(place, exact=exchange.question == test.question)
        return None

    def _leaks(self, exchange: _Exchange, test: _Exchange) -> bool:
        if not are_alike(exchange.question, test.question, self._threshold):
            return False
        before = exchange.context[len(exchange.context) - len(test.context) :]
        return are_alike(exchange.answer, test.answer, self._threshold) or (
            len(exchange.context) >= len(test.context)
            and all(
                are_alike(a, b, self._threshold) for a, b in zip(before, test.context, strict=True)
            )
        )


@dataclass(frozen=True)
class Conflict:
    """Two rows with the same question and different answers."""

    question: str
    place: str
    other: str


class Conflicts:
    """Answers added so far, by all turns before them."""

    def __init__(self) -> None:
        self._answers: dict[tuple[tuple[str, str], ...], tuple[str, str]] = {}

    def add(self, messages: Sequence[Message], place: str) -> Conflict | None:
        """The conflict with an earlier row that has another answer, or None."""
        *before, (_, answer) = [(m["role"], normalise(m["content"])) for m in messages]
        first, earlier = self._answers.setdefault(tuple(before), (answer, place))
        return None if first == answer else Conflict(messages[-2]["content"], place, earlier)


def _exchanges(messages: Sequence[Message]) -> Iterator[_Exchange]:
    asked: list[str] = []
    for message in messages:
        if message["role"] == "user":
            asked.append(normalise(message["content"]))
        elif message["role"] == "assistant":
            yield _Exchange(tuple(asked[:-1]), asked[-1], normalise(message["content"]))


class _NearIndex:
    """An index of normalised texts that finds similar ones."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._texts: list[str] = []
        self._buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(BANDS)]

    def add(self, text: str) -> None:
        for buckets, band in zip(self._buckets, _bands(text), strict=True):
            if len(bucket := buckets[band]) < MAX_BUCKET:
                bucket.append(len(self._texts))
        self._texts.append(text)

    def find(self, text: str) -> list[int]:
        """Numbers of similar texts, counted in the order of `add`; the most similar first."""
        of_bands = zip(self._buckets, _bands(text), strict=True)
        shared = Counter(chain.from_iterable(buckets.get(band, ()) for buckets, band in of_bands))
        candidates = shared if len(shared) <= MAX_BUCKET else dict(shared.most_common(MAX_BUCKET))
        texts = {number: self._texts[number] for number in candidates}
        cutoff = 100 * self._threshold
        found = process.extract(text, texts, scorer=fuzz.ratio, score_cutoff=cutoff, limit=None)
        return [number for _, _, number in sorted(found, key=lambda hit: (-hit[1], hit[2]))]


@lru_cache(maxsize=64)  # a row's text is searched among test questions and rows, and then added
def _bands(text: str) -> tuple[int, ...]:
    """One number for each band; equal for two texts with a probability of similarity ** ROWS."""
    letters = np.frombuffer(text.ljust(SHINGLE).encode("utf-32-le"), np.uint32).astype(np.uint64)
    count = len(letters) - SHINGLE + 1
    # Code points are below 2 ** 21, so three fit into 64 bits.
    packed = letters[:count]
    for i in range(1, SHINGLE):
        packed = packed << np.uint64(21) | letters[i : i + count]
    hashed = _mix(packed)
    lowest: npt.NDArray[np.uint64] = (hashed * _FACTORS + _OFFSETS).min(axis=1)
    mixed = (_mix(lowest).reshape(BANDS, ROWS) * _MIXERS).sum(axis=1, dtype=np.uint64)
    return tuple(mixed.tolist())


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread every bit over all 64 (the finalizer of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ values >> np.uint64(33)) * np.uint64(factor)
    return values ^ values >> np.uint64(33)
