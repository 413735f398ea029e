"""Makes an index: reads documents, embeds what no earlier run embedded, and writes the files."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.retrieval import IndexConfig
from pipeline.core.artifact import kept, open_artifact, sha256_of_file
from pipeline.core.errors import DataError, PipelineError
from pipeline.data.documents import read_document
from pipeline.retrieval import index as files
from pipeline.retrieval.chunks import Chunk, split
from pipeline.retrieval.corpus import Source
from pipeline.retrieval.embedding import Embedder, Vectors, identity
from pipeline.retrieval.index import PROBE, Index

GROUP = 1024  # passages that are embedded at a time, and then kept for a run that resumes
_KEY = 32  # bytes of a digest

Advance = Callable[[int], None]


@dataclass
class Corpus:
    """The passages of all documents.

    documents: what documents.json says. skipped: documents without usable text, with the reason.
    """

    chunks: list[Chunk] = field(default_factory=list)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def read_corpus(config: IndexConfig, found: Sequence[Source], advance: Advance) -> Corpus:
    """Read all documents. One that cannot be read is left out, and reported.

    Raises:
        DataError: none can be read. MissingRuntime: an extra is not installed.
    """
    corpus = Corpus()
    for source in found:
        try:
            document = read_document(source.file)
        except DataError as error:
            corpus.skipped[source.name] = str(error)
            advance(1)
            continue
        chunks = list(
            split(
                document,
                source.name,
                source.labels,
                size=config.chunk_size,
                overlap=config.chunk_overlap,
            )
        )
        if not chunks:
            corpus.skipped[source.name] = f"{source.file} has no text below its headings"
        corpus.chunks += chunks
        corpus.documents[source.name] = {
            "sha256": sha256_of_file(source.file),
            "chunks": len(chunks),
            "labels": list(source.labels),
            "title": document.title,
        }
        advance(1)
    if found and not corpus.chunks:
        raise DataError(f"no document has usable text: {next(iter(corpus.skipped.values()))}")
    return corpus


class Known:
    """Vectors that earlier runs computed with the same model, by the digest of their text.

    Args:
        model: the model's identity.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._vectors: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._vectors

    def __getitem__(self, key: str) -> Any:
        return self._vectors[key]

    def add(self, keys: Iterable[str], vectors: Vectors) -> None:
        self._vectors.update(zip(keys, vectors, strict=True))

    def add_artifacts(self, artifacts: Path, wanted: set[str]) -> None:
        """From the indexes among the artifacts, until nothing is missing."""
        for place, _ in kept(artifacts, "index"):
            if wanted <= self._vectors.keys():
                return
            try:
                artifact = open_artifact(place, stage="index")
                index = Index(artifact.path, artifact.manifest.digest)
            except PipelineError:  # an altered or foreign one is simply not used
                continue
            if index.facts.identity == self.model and index.vectors is not None:
                keys = (index.chunk(row).key for row in range(len(index)))
                rows = [(key, row) for row, key in enumerate(keys) if key in wanted]
                self.add((key for key, _ in rows), index.vectors[[row for _, row in rows]])
            index.close()

    def add_files(self, folder: Path) -> None:
        """From what runs that were interrupted left below a folder of unfinished artifacts."""
        for file in sorted(folder.glob(f"index-*/.scratch/{_name(self.model)}")):
            for keys, vectors in _read_parts(file):
                self.add(keys, vectors)


def embed(
    chunks: Sequence[Chunk], embedder: Embedder, known: Known, scratch: Path, advance: Advance
) -> tuple[Vectors, int]:
    """Vectors of all passages, and how many had to be computed.

    scratch: folder where they are kept as they come, for a run that resumes.
    """
    texts = {chunk.key: chunk.indexed for chunk in chunks}
    # Long texts first: those of a group are of similar length, and memory runs out at once.
    missing = sorted((k for k in texts if k not in known), key=lambda key: -len(texts[key]))
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / _name(known.model)).open("ab") as stream:
        advance(len(texts) - len(missing))
        for start in range(0, len(missing), GROUP):
            keys = missing[start : start + GROUP]
            vectors = embedder.embed([texts[key] for key in keys], "passage")
            _write_part(stream, keys, vectors)
            known.add(keys, vectors)
            advance(len(keys))
    rows = [known[chunk.key] for chunk in chunks]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise DataError(
            "the endpoint gives vectors of another length than before: it serves another model; "
            "give it another name in index.embedding.model"
        )
    return np.stack(rows) if rows else np.zeros((0, 1), np.float32), len(missing)


def write(
    out: Path,
    config: IndexConfig,
    corpus: Corpus,
    vectors: Vectors | None,
    embedder: Embedder | None,
) -> None:
    """Write the index's files."""
    probe: Sequence[float] = ()
    if embedder is not None:
        probe = [float(value) for value in embedder.embed([PROBE], "query")[0]]
    documents: Mapping[str, Any] = corpus.documents
    files.write(
        *(out, config, corpus.chunks, vectors),
        identity=identity(config.embedding),
        probe=probe,
        documents=documents,
    )


def _name(model: str) -> str:
    return f"embedded-{model[:16]}.bin"


def _write_part(stream: Any, keys: Sequence[str], vectors: Vectors) -> None:
    """A part: its size as two int64, its digests, its vectors."""
    head = np.array(vectors.shape, "<i8").tobytes()
    digests = b"".join(bytes.fromhex(key) for key in keys)
    stream.write(head + digests + vectors.astype("<f4").tobytes())
    stream.flush()
    os.fsync(stream.fileno())


def _read_parts(file: Path) -> Iterable[tuple[list[str], Vectors]]:
    """The parts that are whole; a killed run may leave the last one cut."""
    left = file.stat().st_size
    with file.open("rb") as stream:
        while left >= 16:
            count, width = (int(value) for value in np.frombuffer(stream.read(16), "<i8"))
            size = count * (_KEY + 4 * width)
            left -= 16 + size
            if count < 1 or width < 1 or left < 0:
                return
            digests = stream.read(count * _KEY)
            keys = [digests[i : i + _KEY].hex() for i in range(0, len(digests), _KEY)]
            vectors = np.frombuffer(stream.read(4 * count * width), "<f4").reshape(count, width)
            if np.isfinite(vectors).all():
                yield keys, vectors.astype(np.float32)
