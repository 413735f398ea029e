"""An index as an artifact's files: passages, vectors, words, and what they were made with.

    index.json      the collection, its embedding model, its store, a probe of the model
    documents.json  each document's digest, passages and labels
    chunks.jsonl    the passages; offsets.npy: [passages + 1] where each line begins
    ids.npy         [passages] names of the passages in a store
    groups.npy      [passages] place of each passage's labels in index.json
    vectors.npy     [passages, dimensions] float32 of length 1; absent without an embedding model
    terms.txt, postings.npz   BM25

A store holds only vectors and ids. What a model is told and a user sees comes from these files,
which the artifact's manifest protects.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pipeline.config.retrieval import EmbeddingConfig, IndexConfig, StoreConfig
from pipeline.core.artifact import open_artifact
from pipeline.core.errors import ArtifactError, DataError
from pipeline.retrieval.bm25 import Bm25
from pipeline.retrieval.chunks import Chunk, read_chunk
from pipeline.retrieval.embedding import Vectors

KIND = "index"
FACTS, DOCUMENTS, CHUNKS, OFFSETS = "index.json", "documents.json", "chunks.jsonl", "offsets.npy"
IDS, GROUPS, VECTORS = "ids.npy", "groups.npy", "vectors.npy"
EVERYTHING = "*"  # the label of a key that sees every document
PROBE = "How much does it cost to send money abroad?"


@dataclass(frozen=True)
class Facts:
    """What index.json says.

    identity: of the embedding model; "" without one. probe: the vector of PROBE.
    groups: sets of labels that passages have; a passage names its own by its place.
    """

    name: str
    embedding: EmbeddingConfig
    identity: str
    dimensions: int
    probe: Sequence[float]
    store: StoreConfig
    groups: Sequence[Sequence[str]]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "embedding": self.embedding.model_dump(mode="json"),
            "identity": self.identity,
            "dimensions": self.dimensions,
            "probe": list(self.probe),
            "store": self.store.model_dump(mode="json"),
            "groups": [list(group) for group in self.groups],
        }

    @classmethod
    def read(cls, folder: Path) -> "Facts":
        file = folder / FACTS
        try:
            said = json.loads(file.read_bytes())
            return cls(
                str(said["name"]),
                EmbeddingConfig.model_validate(said["embedding"]),
                str(said["identity"]),
                int(said["dimensions"]),
                [float(value) for value in said["probe"]],
                StoreConfig.model_validate(said["store"]),
                [tuple(map(str, group)) for group in said["groups"]],
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ArtifactError(f"{file} cannot be read ({why}): run stage=index again") from error


def write(
    folder: Path,
    config: IndexConfig,
    chunks: Sequence[Chunk],
    vectors: Vectors | None,
    *,
    identity: str,
    probe: Sequence[float],
    documents: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the files of an index, which must not be there yet.

    vectors: [passages, dimensions], or None without an embedding model.
    documents: what documents.json says, by name.
    """
    groups: dict[tuple[str, ...], int] = {}
    places = [groups.setdefault(chunk.labels, len(groups)) for chunk in chunks]
    seen: dict[tuple[str, str], int] = {}
    ids, offsets = [], [0]
    with (folder / CHUNKS).open("wb") as stream:
        for chunk in chunks:
            same = seen[chunk.document, chunk.key] = seen.get((chunk.document, chunk.key), -1) + 1
            ids.append(chunk.id(same))
            offsets.append(offsets[-1] + stream.write(f"{chunk.to_json()}\n".encode()))
    np.save(folder / OFFSETS, np.array(offsets, np.int64))
    np.save(folder / IDS, np.array(ids, "S32"))
    np.save(folder / GROUPS, np.array(places, np.uint32))
    if vectors is not None:
        np.save(folder / VECTORS, vectors.astype(np.float32, copy=False))
    Bm25.build(chunk.indexed for chunk in chunks).save(folder)
    dimensions = 0 if vectors is None else int(vectors.shape[1])
    facts = Facts(
        *(config.name, config.embedding, identity, dimensions, probe, config.store),
        list(groups),
    )
    (folder / FACTS).write_text(json.dumps(facts.to_json(), indent=1) + "\n")
    text = json.dumps(documents, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / DOCUMENTS).write_text(text + "\n", encoding="utf-8")


class Index:
    """A verified index, opened for search. Large parts stay on the disk until they are read.

    Attributes:
        digest: of the artifact.
        ids: [passages] names in a store.
        vectors: [passages, dimensions], or None.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest
        self.facts = Facts.read(folder)
        try:
            self._offsets = np.load(folder / OFFSETS, allow_pickle=False)
            self.ids = [value.decode() for value in np.load(folder / IDS, allow_pickle=False)]
            self.groups: npt.NDArray[np.uint32] = np.load(folder / GROUPS, allow_pickle=False)
            self.vectors: Vectors | None = None
            if self.facts.dimensions:
                self.vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
            self._chunks = os.open(folder / CHUNKS, os.O_RDONLY)
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{folder} cannot be read ({error}): run stage=index again"
            ) from error
        self.bm25 = Bm25.load(folder)
        shape = (len(self.ids), self.facts.dimensions)
        if (
            len({len(self.ids), len(self.groups), len(self._offsets) - 1}) > 1
            or self.groups.max(initial=0) >= max(1, len(self.facts.groups))
            or (self.vectors is not None and self.vectors.shape != shape)
        ):
            raise ArtifactError(f"{folder}: its files differ in length: run stage=index again")

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """
        Raises:
            ArtifactError: there is no whole index.
        """
        artifact = open_artifact(folder, stage="index")
        return cls(folder, artifact.require(KIND).manifest.digest)

    def __len__(self) -> int:
        return len(self.ids)

    def chunk(self, row: int) -> Chunk:
        """
        Raises:
            DataError: the file was changed since it was opened.
        """
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return read_chunk(os.pread(self._chunks, end - start, start))

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows of the passages, by their ids."""
        return {id: row for row, id in enumerate(self.ids)}

    def visible(self, labels: Collection[str]) -> npt.NDArray[np.bool_]:
        """[groups] whether a key with these labels may see the passages of each group."""
        if EVERYTHING in labels:
            return np.ones(len(self.facts.groups), bool)
        given = set(labels)
        return np.array([not g or not given.isdisjoint(g) for g in self.facts.groups], bool)

    def documents(self) -> dict[str, Any]:
        """What documents.json says."""
        try:
            found = json.loads((self.folder / DOCUMENTS).read_bytes())
            return dict(found)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.folder / DOCUMENTS} cannot be read ({error})") from error

    def close(self) -> None:
        os.close(self._chunks)


def group_key(labels: Iterable[str]) -> str:
    """A group as one text, for stores; no label has a comma."""
    return ",".join(sorted(labels))
