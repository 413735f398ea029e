"""A small bank's documents, and an index of them with an embedding model that needs no weights."""

import copy
import functools
import zlib
from pathlib import Path

import numpy as np

from pipeline.config.defaults import default_tree
from pipeline.config.retrieval import IndexConfig
from pipeline.retrieval import build
from pipeline.retrieval.bm25 import words
from pipeline.retrieval.corpus import sources
from pipeline.retrieval.index import Index

DOCUMENTS = {
    "wires.md": "# Wires\n\n## Abroad\n\nA wire abroad costs 40 dollars.\n\n## At home\n\n"
    "A wire at home costs 18 dollars.\n",
    "cards.txt": "Cards\n\n## Lost card\n\nCall 555-0142 if your card is lost.\n",
    "staff/limits.md": "# Limits\n\nCashiers may hand out 5000 dollars.\n",
}


class WordEmbedder:
    """Sums a random vector for each word: texts that share words are near to each other."""

    truncated = 0

    def __init__(self, seed: int = 1, dimensions: int = 512) -> None:
        self._seed, self._dimensions = seed, dimensions
        self.embedded: list[str] = []
        self.closed = False

    def embed(self, texts, kind):
        self.embedded += texts if kind == "passage" else []
        found = np.stack([self._vector(text) for text in texts])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def _vector(self, text: str):
        total = np.full(self._dimensions, 1e-3)
        for word in words(text):
            seed = zlib.crc32(word.encode()) + self._seed
            total += np.random.default_rng(seed).standard_normal(self._dimensions)
        return total

    def close(self):
        self.closed = True


def write_documents(folder: Path, documents=None) -> Path:
    for name, text in (DOCUMENTS if documents is None else documents).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


_defaults = functools.cache(default_tree)


def index_config(folder: Path, **changes) -> IndexConfig:
    section = copy.deepcopy(_defaults()["index"]) | {"name": "bank", "folder": str(folder)}
    embedding = changes.pop("embedding", {"base_url": "http://127.0.0.1:9/v1", "model": "words"})
    section["embedding"] |= embedding
    return IndexConfig.model_validate(section).but(**changes)


def make_index(out: Path, config: IndexConfig, embedder=None, known=None) -> Index:
    """What stage=index writes, without a manifest."""
    out.mkdir(parents=True, exist_ok=True)
    corpus = build.read_corpus(config, sources(config), lambda _: None)
    vectors = None
    if embedder:
        known = known or build.Known(build.identity(config.embedding))
        vectors, _ = build.embed(corpus.chunks, embedder, known, out / ".scratch", lambda _: None)
    build.write(out, config, corpus, vectors, embedder)
    return Index(out, "0" * 64)
