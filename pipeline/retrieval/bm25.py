"""BM25 over passages (Robertson and Zaragoza 2009), and how much of a question a passage holds.

Words are casefolded runs of letters and digits. Scripts without spaces between words (Chinese,
Japanese, Thai …) are searched by single characters.
"""

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DataError

TERMS, POSTINGS = "terms.txt", "postings.npz"
K1, B = 1.2, 0.75
MOST_WORDS = 256  # of a question
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
Scores = npt.NDArray[np.float32]


def words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Bm25:
    """
    Args:
        terms: all words, each once.
        starts: [terms + 1] where each word's postings begin. rows: of the passages that have it.
        weights: [postings] each word's part of the passage's score.
        idf: [terms] inverse document frequencies.
        count: passages.
    """

    def __init__(
        self,
        terms: Sequence[str],
        starts: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int32],
        weights: Scores,
        idf: Scores,
        count: int,
    ) -> None:
        self._places = {term: place for place, term in enumerate(terms)}
        self._starts, self._rows, self._weights, self._idf = starts, rows, weights, idf
        self._count = count

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Bm25":
        places: dict[str, int] = {}
        terms, rows, counts, lengths = array("q"), array("i"), array("i"), array("i")
        for at, text in enumerate(texts):
            found = Counter(places.setdefault(word, len(places)) for word in words(text))
            terms.extend(found.keys())
            counts.extend(found.values())
            rows.extend([at] * len(found))
            lengths.append(found.total())
        term = np.array(terms, np.int64)
        order = np.argsort(term, kind="stable")
        row = np.array(rows, np.int32)[order]
        frequency = np.bincount(term, minlength=len(places))
        idf = _idf(frequency.astype(np.float64), len(lengths))
        length = np.array(lengths, np.float64)
        norm = K1 * (1 - B + B * length / max(1.0, length.mean() if len(length) else 1.0))
        count = np.array(counts, np.float64)[order]
        weights = idf[term[order]] * count * (K1 + 1) / (count + norm[row])
        starts = np.concatenate([[0], np.cumsum(frequency)]).astype(np.int64)
        return cls(
            *(list(places), starts, row),
            *(weights.astype(np.float32), idf.astype(np.float32), len(lengths)),
        )

    def save(self, folder: Path) -> None:
        (folder / TERMS).write_text("".join(f"{term}\n" for term in self._places), "utf-8")
        np.savez(
            folder / POSTINGS,
            starts=self._starts,
            rows=self._rows,
            weights=self._weights,
            idf=self._idf,
            count=self._count,
        )

    @classmethod
    def load(cls, folder: Path) -> "Bm25":
        """
        Raises:
            DataError: a file cannot be read, or they do not belong together.
        """
        try:
            terms = (folder / TERMS).read_text("utf-8").split("\n")[:-1]
            with np.load(folder / POSTINGS, allow_pickle=False) as found:
                starts, rows, weights, idf, count = (
                    found[name] for name in ("starts", "rows", "weights", "idf", "count")
                )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder}: its words cannot be read ({error}): run stage=index"
            ) from error
        if not len(terms) == len(idf) == len(starts) - 1 or len(rows) != len(weights):
            raise DataError(f"{folder}: {TERMS} and {POSTINGS} differ: run stage=index again")
        return cls(terms, starts, rows, weights, idf, int(count))

    def scores(self, question: str) -> Scores:
        """[passages] the BM25 score of each."""
        scores = np.zeros(self._count, np.float32)
        for place in self._known(question):
            part = slice(self._starts[place], self._starts[place + 1])
            scores[self._rows[part]] += self._weights[part]
        return scores

    def coverage(self, question: str, rows: Sequence[int]) -> list[float]:
        """Which share of a question's words each of these passages has, 0 to 1. Rare words count
        more, and a word that no passage has counts most."""
        asked = set(words(question)[:MOST_WORDS])
        if not asked or not self._count:
            return [0.0] * len(rows)
        unknown = float(_idf(np.zeros(1), self._count)[0])
        whole, held = 0.0, np.zeros(len(rows))
        wanted = np.array(rows, np.int32)
        for word in asked:
            place = self._places.get(word)
            weight = unknown if place is None else float(self._idf[place])
            whole += weight
            if place is not None:
                part = slice(self._starts[place], self._starts[place + 1])
                held += weight * np.isin(wanted, self._rows[part])
        return [float(value / whole) for value in held] if math.isfinite(whole) else []

    def _known(self, question: str) -> list[int]:
        """Places of the question's words, each once."""
        asked = dict.fromkeys(words(question)[:MOST_WORDS])
        return [self._places[word] for word in asked if word in self._places]


def _idf(frequency: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    return np.log1p((count - frequency + 0.5) / (frequency + 0.5))
