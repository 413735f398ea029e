"""Duplicates, exact and near; test questions in training data; and conflicting answers.

Two questions are alike if few letters differ of those that distinguish them. Passages that several
rows share, such as a long instruction, distinguish none of them (passages.py). A difference must
also be spread thinly: with another sentence in it, a long text asks something else. Answers are
compared more strictly, with their case and indentation, because one word can turn them around.

MinHash over three-letter shingles of the user's turns (Broder 1997), in bands (Leskovec et al.,
Mining of Massive Datasets, chapter 3), finds candidates for near duplicates. Each candidate is then
compared turn by turn. So the time grows with the number of rows, not with its square. Two texts of
similarity 0.9 share a band in about 97 of 100 cases, of 0.97 almost always. A paraphrase counts
neither as a duplicate nor as a leak. Knows neither files nor tokens.
"""

import hashlib
import json
import random
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process
from rapidfuzz.distance import OSA, Indel

from pipeline.data.packing import unpack
from pipeline.data.passages import Passages, mix, shingles
from pipeline.models.chat.messages import PLAIN, Message
from pipeline.models.chat.tool_calls import said

BANDS, ROWS = 24, 3
# Rows to compare with one row. A passage that more texts have would fill a band's bucket with rows
# that are alike there only, so it is left out of the search.
MAX_BUCKET = 64
# Letters of both texts around a difference that count as evidence against its being large.
NEAR_LETTERS = 400
# A word of an answer with a letter more, less, exchanged or swapped is a typing error if it has so
# many letters; a shorter one is another word.
TYPO_LETTERS = 4
_ASKING = ("user", "tool")  # roles whose turns the assistant answers
# Fields of a turn of which `said` has what counts, or which name a call.
_OF_CALLS = ("content", "tool_calls", "tool_call_id")
_EDGES = ".,;:!?…'\"`()[]{}«»“”‘’„–—"
_SENTENCE_EDGES = ".,;:!?…'\"«»“”‘’„"  # brackets and dashes are content of an answer
_SENTENCE_ENDS = (".", "!", "?", ":", "…")
_RAISED = {ord(c): f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_RAISED |= {ord(c): f"_{i}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_RANDOM = random.Random(0)  # its bits are the same in every version of Python
# Processors multiply numbers of 32 bits several times as fast as those of 64.
_FACTORS = np.array([[_RANDOM.getrandbits(32) | 1] for _ in range(BANDS * ROWS)], np.uint32)
_OFFSETS = np.array([[_RANDOM.getrandbits(32)] for _ in range(BANDS * ROWS)], np.uint32)
_DIGEST = 16  # bytes of a digest that tell rows apart
# Numbers of bands with their values.
Bands = Sequence[tuple[int, int]]
_MIXERS = np.array([[_RANDOM.getrandbits(64) | 1 for _ in range(ROWS)]], np.uint64)


def normalise(text: str) -> str:
    """A question in lower case, without punctuation around words, with single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_RAISED))
    words = text.casefold().split()
    # "[]" alone may be what the question is about; a mark of a sentence is not.
    stripped = [word.strip(_EDGES) or word.strip(_SENTENCE_EDGES + "`–—") for word in words]
    return " ".join(word for word in stripped if word) or " ".join(words)


def normalise_answer(text: str) -> str:
    """An answer without marks of sentences at the ends of words; case and indentation stay."""
    words = spaced(text).split()
    stripped = [word.strip(_SENTENCE_EDGES) for word in words]
    return " ".join(word for word in stripped if word) or " ".join(words)


def spaced(text: str) -> str:
    """The text with single spaces. The indentation of its lines becomes a word before them."""
    if "\n" in (text := text.strip("\r\n")):
        text = re.sub(r"^[ \t]+(?=\S)", _indentation, text, flags=re.MULTILINE)
    return " ".join(text.split())


def _indentation(found: re.Match[str]) -> str:
    return "\0" + found[0].replace(" ", "s").replace("\t", "t") + " "


def are_alike(one: str, other: str, threshold: float, passages: Passages | None = None) -> bool:
    """Whether two normalised questions have the same numbers and at least this similarity.

    Similarity is 1 - (letters to insert or delete) / (letters of both that are in no shared
    passage). Where many letters in a row differ, only NEAR_LETTERS of both are counted.
    """
    if one == other:
        return True
    share = 1 - threshold
    changed = Indel.distance(one, other)
    if changed > share * (len(one) + len(other)):
        return False
    if re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return False
    if passages and changed > share * (passages.unshared(one) + passages.unshared(other)):
        return False
    most = int(share * NEAR_LETTERS)
    if changed <= most:
        return True
    places = [edit.src_pos for edit in Indel.editops(one, other)]
    return all(
        last - first > NEAR_LETTERS // 2 for first, last in zip(places, places[most:], strict=False)
    )


def are_same(one: str, other: str, threshold: float) -> bool:
    """Whether two normalised answers differ at most in typing errors, with this similarity."""
    if one == other:
        return True
    if fuzz.ratio(one, other, score_cutoff=100 * threshold) == 0:
        return False
    words, others = one.split(), other.split()
    return len(words) == len(others) and all(
        a == b or _is_typo(a, b) for a, b in zip(words, others, strict=True)
    )


def _is_typo(one: str, other: str) -> bool:
    return (
        min(len(one), len(other)) >= TYPO_LETTERS
        and one.isalpha()
        and other.isalpha()
        and one.casefold() != other.casefold()
        and OSA.distance(one, other, score_cutoff=1) <= 1
    )


def differ_in_case(one: str, other: str) -> bool:
    """Whether two questions that differ in case alone may mean other words: "US" and "us".

    A word in capitals counts, unless all of a text is in capitals. The case of other words counts
    within sentences if both texts are written with care: they begin with a capital, and have words
    without one.
    """
    if one.isupper() or other.isupper():
        return False
    words, others = _words(one), _words(other)
    careful = _is_careful(words) and _is_careful(others)
    return any(
        a != b
        and a.casefold() == b.casefold()
        and ((careful and not begins) or _is_acronym(a) != _is_acronym(b))
        for (a, begins), (b, _) in zip(words, others, strict=False)
    )


def _words(text: str) -> list[tuple[str, bool]]:
    """The words of a text, each with whether it begins a sentence."""
    words, begins = [], True
    for word in text.split():
        if stripped := word.strip(_EDGES):
            words.append((stripped, begins))
        begins = word.rstrip("'\"”’»)")[-1:] in _SENTENCE_ENDS
    return words


def _is_acronym(word: str) -> bool:
    return len(word) > 1 and word.isupper()


def _is_careful(words: Sequence[tuple[str, bool]]) -> bool:
    return bool(words) and words[0][0][0].isupper() and any(word[0].islower() for word, _ in words)


@dataclass(frozen=True)
class Exchange:
    """A question of a conversation and its answer, normalised; the question also as written.

    The result of a call is a question, too: the assistant answers it.
    """

    context: tuple[str, ...]  # the earlier questions
    question: str
    answer: str
    written: str


class Comparable:
    """A row as it is compared.

    Args:
        place: where it was read.
        rejected: of a pair, the same conversation with the worse answer.
        label: whether the answer is a good one, if training learns from that.
        tools: those that may be called. With other tools, the right answer may be another one.
    """

    __slots__ = ("_asked", "_label", "_messages", "_more", "_packed", "_rejected", "_turns",
                 "place", "tools")  # fmt: skip

    def __init__(
        self,
        messages: Sequence[Message],
        place: str,
        rejected: Sequence[Message] | None = None,
        label: bool | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.place = place
        # Many rows have the same tools.
        self.tools = sys.intern(json.dumps(tools, sort_keys=True)) if tools else ""
        self._label = label
        self._packed: bytes | None = None
        self._messages: Sequence[Message] | None = messages
        self._rejected: Sequence[Message] | None = rejected
        self._turns: list[tuple[str, str]] | None = None
        self._more: list[tuple[str, str]] | None = None
        self._asked: str | None = None

    def pack(self, packed: bytes) -> None:
        """Keep nothing but this: what `packing.pack` made of its messages.

        A million rows wait for their comparison. All else is worked out again when it is asked for.
        """
        self._packed = packed
        self._messages = self._rejected = self._turns = self._more = self._asked = None

    def unpacked(self) -> "Comparable":
        """The row, which keeps what it works out."""
        if self._packed is None:
            return self
        messages, rejected, _ = unpack(self._packed)
        other = Comparable(messages, self.place, rejected, self._label)
        other.tools = self.tools
        return other

    def _sides(self) -> tuple[Sequence[Message], Sequence[Message] | None]:
        if self._packed is not None:
            messages, rejected, _ = unpack(self._packed)
            return messages, rejected
        assert self._messages is not None
        return self._messages, self._rejected

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Roles and normalised texts."""
        if self._turns is not None:
            return self._turns
        turns = _normalised(self._sides()[0])
        if self._packed is None:
            self._turns = turns
        return turns

    @property
    def more(self) -> list[tuple[str, str]]:
        """What a pair or a label adds: two rows that differ in it teach different things."""
        if self._more is not None:
            return self._more
        more = _normalised(self._sides()[1] or ())
        if self._label is not None:
            more.append(("label", str(self._label)))
        if self._packed is None:
            self._more = more
        return more

    @property
    def digest(self) -> bytes:
        """The same for rows that differ in white space only."""
        messages, rejected = self._sides()
        plain: list[Any] = [
            [*sorted({k: v for k, v in m.items() if k not in _OF_CALLS}.items()), spaced(said(m))]
            for m in (*messages, *(rejected or ()))
        ]
        if self._label is not None:
            plain.append(self._label)
        if self.tools:
            plain.append(self.tools)
        return hashlib.sha256(repr(plain).encode()).digest()

    @property
    def asked(self) -> str:
        """The user's turns together: two rows that are alike in each turn are alike in these."""
        if self._asked is not None:
            return self._asked
        asked = "\n".join(text for role, text in self.turns if role in ("user", PLAIN))
        if self._packed is None:
            self._asked = asked
        return asked

    @property
    def plain(self) -> str | None:
        """The text of a row that is not a conversation."""
        role, text = self.turns[0]
        return text if role == PLAIN else None

    @property
    def written(self) -> str:
        """The last question as it was written."""
        *before, _ = self._sides()[0]
        return str(next(m["content"] for m in reversed(before) if m["role"] in _ASKING))

    @property
    def claim(self) -> tuple[bytes, str]:
        """What the row judges, as a digest, and its verdict: another verdict is a conflict.

        A pair says which of two answers to a prompt is the better; a label, whether an answer is a
        good one; any other row, what the answer is.
        """
        *before, (_, answer) = self.turns
        judged: list[Any] = before
        rejected = self._sides()[1]
        if rejected is not None:
            judged = [before, sorted((answer, self.more[-1][1]))]
        if self._label is not None:
            judged, answer = self.turns, str(self._label)
        if self.plain is not None:
            judged = self.turns  # which answers nothing
        if self.tools:
            judged = [judged, self.tools]
        return hashlib.sha256(repr(judged).encode()).digest(), answer

    def exchanges(self) -> Iterator[Exchange]:
        """The questions with their answers; of a pair those of both sides."""
        messages, rejected = self._sides()
        yield from _exchanges(self.turns, messages)
        if rejected is not None:
            yield from _exchanges(self.more, rejected)


def _normalised(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [
        (m["role"], (normalise_answer if m["role"] == "assistant" else normalise)(said(m)))
        for m in messages
    ]


def _exchanges(turns: Sequence[tuple[str, str]], messages: Sequence[Message]) -> Iterator[Exchange]:
    asked: list[str] = []
    written = ""
    for (role, text), message in zip(turns, messages, strict=True):
        if role in _ASKING:
            asked.append(text)
            written = message["content"]
        elif role == "assistant" and asked:  # not a greeting
            yield Exchange(tuple(asked[:-1]), asked[-1], text, written)


@dataclass(frozen=True)
class Match:
    """An earlier row that is a duplicate; `exact` if it is the same to the letter."""

    place: str
    exact: bool


class Duplicates:
    """Rows added so far. A near duplicate has the same roles, and each of its turns is alike.

    Args:
        threshold: similarity from which turns are alike.
        passages: what the rows share.
    """

    def __init__(self, threshold: float, passages: Passages) -> None:
        self._threshold = threshold
        self._passages = passages
        self._exact: dict[bytes, str] = {}
        self._rows: list[Comparable] = []
        self._index = _NearIndex(threshold)

    def add(
        self, row: Comparable, bands: Bands | None = None, stored: Comparable | None = None
    ) -> Match | None:
        """The earlier row that this one duplicates. Otherwise adds this one and returns None.

        bands: of what it asks, without those that no other row has; worked out if not given.
        stored: the row as it is kept for later comparisons.
        """
        digest = row.digest[:_DIGEST]
        if digest in self._exact:
            return Match(self._exact[digest], exact=True)
        self._exact[digest] = row.place
        if bands is None:
            bands = tuple(enumerate(_bands(row.asked, self._passages)))
        if not bands:
            return None
        for candidate in self._index.find(row.asked, bands):
            earlier = self._rows[candidate]
            ours, theirs = row.turns + row.more, earlier.turns + earlier.more
            if (len(ours), row.tools) == (len(theirs), earlier.tools) and all(
                self._are_alike(*pair) for pair in zip(ours, theirs, strict=True)
            ):
                return Match(earlier.place, exact=False)
        self._index.add(row.asked, bands)
        self._rows.append(stored or row)
        return None

    def _are_alike(self, one: tuple[str, str], other: tuple[str, str]) -> bool:
        (role, text), (other_role, other_text) = one, other
        if role != other_role:
            return False
        if role == "assistant":
            return are_same(text, other_text, self._threshold)
        return are_alike(text, other_text, self._threshold, self._passages)


class Leaks:
    """Test questions, to be found again in training rows.

    A training row leaks if a user turn is like a test row's last question, and either the turns
    before it or the answer are alike too ("yes, please" alone is not a leak). A question that
    differs in the case of a word and has another answer is another question.
    """

    def __init__(self, threshold: float, passages: Passages) -> None:
        self._threshold = threshold
        self._passages = passages
        self._tests: list[tuple[str, Exchange]] = []
        self._index = _NearIndex(threshold)

    def add_test(self, row: Comparable) -> None:
        *_, last = row.exchanges()
        self._index.add(last.question, self._bands(last.question))
        self._tests.append((row.place, last))

    def find(self, row: Comparable) -> Match | None:
        """The test row whose question this training row contains, or None.

        Plain text does if it holds a test question and its answer word for word.
        """
        if (text := row.plain) is not None:
            for place, test in self._tests:
                if test.question in text and normalise(test.answer) in text:
                    return Match(place, exact=True)
        if not self._tests:
            return None
        for exchange in row.exchanges():
            for candidate in self._index.find(exchange.question, self._bands(exchange.question)):
                place, test = self._tests[candidate]
                if self._leaks(exchange, test):
                    return Match(place, exact=exchange.question == test.question)
        return None

    def _leaks(self, exchange: Exchange, test: Exchange) -> bool:
        if not self._are_alike(exchange.question, test.question):
            return False
        if are_same(exchange.answer, test.answer, self._threshold):
            return True
        before = exchange.context[len(exchange.context) - len(test.context) :]
        return (
            len(exchange.context) >= len(test.context)
            and all(self._are_alike(a, b) for a, b in zip(before, test.context, strict=True))
            and not differ_in_case(exchange.written, test.written)
        )

    def _bands(self, question: str) -> Bands:
        return tuple(enumerate(_bands(question, self._passages)))

    def _are_alike(self, one: str, other: str) -> bool:
        return are_alike(one, other, self._threshold, self._passages)


@dataclass(frozen=True)
class Conflict:
    """Two rows with the same question and different answers."""

    question: str
    place: str
    other: str


class Conflicts:
    """What rows judged so far, and their verdicts: answers, by all turns before them."""

    def __init__(self) -> None:
        self._answers: dict[bytes, tuple[bytes, Comparable]] = {}

    def add(self, row: Comparable, stored: Comparable | None = None) -> Conflict | None:
        """The conflict with an earlier row that has another answer, or None.

        stored: the row as it is kept for later comparisons.
        """
        key, text = row.claim
        answer = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST]
        first, earlier = self._answers.setdefault(key[:_DIGEST], (answer, stored or row))
        if first == answer or differ_in_case(row.written, earlier.written):
            return None
        return Conflict(row.written, row.place, earlier.place)


class _NearIndex:
    """An index of normalised texts that finds similar ones."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._texts: list[str] = []
        self._buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(BANDS)]

    def add(self, text: str, bands: Bands) -> None:
        for band, value in bands:
            if len(bucket := self._buckets[band][value]) < MAX_BUCKET:
                bucket.append(len(self._texts))
        self._texts.append(text)

    def find(self, text: str, bands: Bands) -> list[int]:
        """Numbers of similar texts, counted in the order of `add`; the most similar first."""
        shared = Counter(
            chain.from_iterable(self._buckets[band].get(value, ()) for band, value in bands)
        )
        if not shared:
            return []
        candidates = shared if len(shared) <= MAX_BUCKET else dict(shared.most_common(MAX_BUCKET))
        texts = {number: self._texts[number] for number in candidates}
        cutoff = 100 * self._threshold
        found = process.extract(text, texts, scorer=fuzz.ratio, score_cutoff=cutoff, limit=None)
        return [number for _, _, number in sorted(found, key=lambda hit: (-hit[1], hit[2]))]


class BandTable:
    """The bands of many texts, of which only those count that two of the texts share.

    In most data sets few do. An index of all bands would take more memory than the rows.

    Args:
        texts: as they will be added to Duplicates.
    """

    def __init__(self, texts: Iterable[str], count: int, passages: Passages) -> None:
        self._values = np.zeros((count, BANDS), np.uint64)
        for i, text in enumerate(texts):
            self._values[i] = _bands(text, passages)
        self._shared = np.zeros((count, BANDS), np.bool_)
        for band in range(BANDS):
            values = self._values[:, band]
            order = np.argsort(values)
            same = values[order[1:]] == values[order[:-1]]
            self._shared[order[1:], band] |= same
            self._shared[order[:-1], band] |= same

    def __getitem__(self, number: int) -> Bands:
        """Of a text, by its number."""
        found = np.flatnonzero(self._shared[number])
        values = self._values[number, found]
        return tuple(zip(found.tolist(), values.tolist(), strict=True))


@lru_cache(maxsize=64)  # a row's text is searched among test questions and rows, and then added
def _bands(text: str, passages: Passages) -> tuple[int, ...]:
    """One number for each band; equal for two texts with a probability of similarity ** ROWS."""
    hashed = passages.distinguishing(shingles(text), MAX_BUCKET).astype(np.uint32)
    lowest: npt.NDArray[np.uint32] = (hashed * _FACTORS + _OFFSETS).min(axis=1)
    mixed = (mix(lowest.astype(np.uint64)).reshape(BANDS, ROWS) * _MIXERS).sum(
        axis=1, dtype=np.uint64
    )
    return tuple(mixed.tolist())
