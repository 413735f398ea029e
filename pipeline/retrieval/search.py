"""A question finds passages: by meaning and by words, and a reranker orders them anew.

Candidates come from both, and are scored by both: the cosine of the vectors, and the share of the
question's words that a passage holds. Fusing two orders instead (reciprocal rank fusion) lets the
words of everyday questions outvote a good embedding model (bench/retrieval.py ranking).
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipeline.core.errors import ConfigError
from pipeline.retrieval.chunks import Chunk
from pipeline.retrieval.embedding import Embedder
from pipeline.retrieval.index import PROBE, Index
from pipeline.retrieval.stores.base import Store, top

MAX_QUESTION = 2000  # characters that are searched for
LEAST_CANDIDATES = 20
# Least cosine of one text's vectors by the model of the index and by the one at hand. Other
# precisions and versions of a library give 0.999 and more, other models less than 0.5.
SAME_MODEL = 0.99


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    row: in the index. score: 0 to 1, of the cosine and the share of the question's words; of the
    latter alone, where the index has no embedding model.
    """

    row: int
    chunk: Chunk
    score: float


class Reranker(Protocol):
    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """How well each passage answers the question; higher is better.

        Raises:
            RetrievalFailed: the endpoint does not answer.
        """

    def close(self) -> None: ...


@dataclass
class Timing:
    """Seconds of the parts of one search."""

    embed: float = 0.0
    search: float = 0.0
    rerank: float = 0.0


@dataclass
class Search:
    """An index with what is needed to search it.

    embedder: None if the index has no vectors. candidates: passages that the reranker gets.
    word_weight: of the share of words in a score, 0 to 1; the rest is the cosine's.

    Raises:
        ConfigError: the model at hand is not the one that the index was made with. RetrievalFailed:
        it does not answer; both on the first question.
    """

    index: Index
    store: Store
    embedder: Embedder | None = None
    reranker: Reranker | None = None
    candidates: int = LEAST_CANDIDATES
    word_weight: float = 0.2
    _is_checked: bool = field(default=False, init=False)

    def find(
        self,
        question: str,
        count: int,
        *,
        labels: Collection[str] = (),
        min_score: float = 0.0,
        timing: Timing | None = None,
    ) -> list[Hit]:
        """The best passages that a key with these labels may see.

        Raises:
            RetrievalFailed: the store or an endpoint does not answer.
            ConfigError: see the class.
        """
        question, timing = question[:MAX_QUESTION], timing or Timing()
        visible = self.index.visible(labels)
        if not question.strip() or not visible.any():
            return []
        reranked = self.candidates if self.reranker else 0
        most = max(LEAST_CANDIDATES, 4 * count, reranked)
        begin = time.perf_counter()
        vector = self._embed(question)
        timing.embed = time.perf_counter() - begin
        begin = time.perf_counter()
        words = self.index.bm25.scores(question)
        if not visible.all():
            words[~visible[self.index.groups]] = 0
        lists = [[row for row in top(words, most) if words[row] > 0]]
        if vector is not None:
            # A store may be another program: what it says is checked again.
            near = self.store.nearest(vector, most, visible)
            lists.append([row for row in near if visible[self.index.groups[row]]])
        rows = list(dict.fromkeys(row for found in lists for row in found))
        scores = np.array(self.index.bm25.coverage(question, rows))
        if vector is not None and self.index.vectors is not None:
            cosines = self.index.vectors[rows] @ vector
            scores = self.word_weight * scores + (1 - self.word_weight) * cosines
        scores = scores.clip(0, 1)
        kept = [place for place in top(scores, most) if scores[place] >= min_score]
        found = [Hit(rows[i], self.index.chunk(rows[i]), float(scores[i])) for i in kept]
        timing.search = time.perf_counter() - begin
        if self.reranker and len(found) > 1:
            begin = time.perf_counter()
            found = self._reranked(self.reranker, question, found[: self.candidates])
            timing.rerank = time.perf_counter() - begin
        return found[:count]

    def _embed(self, question: str) -> "np.ndarray | None":
        if self.embedder is None:
            return None
        self.check_model()
        return self.embedder.embed([question], "query")[0]

    def check_model(self) -> None:
        """
        Raises:
            ConfigError: the model at hand is not the one that the index was made with.
            RetrievalFailed: it does not answer.
        """
        if self._is_checked or self.embedder is None:
            return
        facts = self.index.facts
        probe = self.embedder.embed([PROBE], "query")[0]
        what = f"the index {self.index.folder} was made with another embedding model"
        again = "serve the model that it was made with, or run stage=index again"
        if len(probe) != facts.dimensions:
            raise ConfigError(
                f"{what}: its vectors have {facts.dimensions} dimensions, and those of the model "
                f"at hand {len(probe)}: {again}"
            )
        cosine = float(probe @ np.asarray(facts.probe, np.float32))
        if cosine < SAME_MODEL:
            raise ConfigError(
                f"{what}: the two give the same text vectors with a cosine of {cosine:.2f}: {again}"
            )
        self._is_checked = True

    @staticmethod
    def _reranked(reranker: Reranker, question: str, found: list[Hit]) -> list[Hit]:
        scores = reranker.scores(question, [hit.chunk.indexed for hit in found])
        order = sorted(range(len(found)), key=lambda place: (-scores[place], place))
        return [found[place] for place in order]

    def close(self) -> None:
        self.store.close()
        if self.embedder:
            self.embedder.close()
        if self.reranker:
            self.reranker.close()
        self.index.close()
