"""Documents → index: passages with their place, their vectors and words, for answers that cite.

A document that was read before costs nothing but its digest: passages are embedded by the digest of
their text, and earlier indexes and interrupted runs keep what they embedded. A document that is
gone is gone from the index, and from its store.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.artifact import SCRATCH, Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.stage import Stage
from pipeline.retrieval import build
from pipeline.retrieval.corpus import sources
from pipeline.retrieval.embedding import model_files, open_embedder
from pipeline.retrieval.index import KIND, Index
from pipeline.retrieval.stores.opening import open_store

STAGE = Stage(
    version=1,
    libraries=("numpy", "markdown-it-py"),
    optional_libraries=("torch", "transformers", "tokenizers", "pypdf", "python-docx", "lxml"),
    less_memory="lower index.embedding.batch_size or index fewer documents",
)
MOST_SKIPPED = 5  # documents without text that are named


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Read, cut and embed the documents, write the index, and bring its store up to date.

    Raises:
        DataError: a setting names no document, or none has text. MissingRuntime: an extra or a
        server is missing.
    """
    settings, console = config.index, get_console()
    found = sources(settings)
    if not found:
        console.print("index.folder is not set, so the index is empty", soft_wrap=True)
    with progress() as bar:
        task = bar.add_task("read documents", total=len(found))
        corpus = build.read_corpus(settings, found, lambda n: bar.update(task, advance=n))
        embedder = open_embedder(settings.embedding) if corpus.chunks else None
        vectors, computed = None, 0
        if embedder:
            known = build.Known(build.identity(settings.embedding))
            wanted = {chunk.key for chunk in corpus.chunks}
            known.add_files(out.parent)
            known.add_artifacts(config.artifacts, wanted)
            task = bar.add_task("embed passages", total=len(wanted))
            vectors, computed = build.embed(
                *(corpus.chunks, embedder, known, out / SCRATCH),
                lambda n: bar.update(task, advance=n),
            )
        build.write(out, settings, corpus, vectors, embedder)
    for why in list(corpus.skipped.values())[:MOST_SKIPPED]:
        console.print("left out:", why, markup=False, soft_wrap=True, highlight=False)
    if len(corpus.skipped) > MOST_SKIPPED:
        console.print(f"[yellow]and {len(corpus.skipped) - MOST_SKIPPED} more[/]: see skipped.json")
    truncated = embedder.truncated if embedder else 0
    if truncated:
        console.print(
            f"[yellow]{truncated} passages are longer than the embedding model reads, so their "
            "ends are found by words alone:[/] lower index.chunk_size",
            soft_wrap=True,
        )
    (out / "skipped.json").write_text(
        json.dumps(corpus.skipped, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    index = Index(out, "")
    store = open_store(index)
    added, removed = store.sync(index)
    store.close()
    index.close()
    if embedder:
        embedder.close()
    metrics = {
        "documents": len(corpus.documents),
        "documents_left_out": len(corpus.skipped),
        "chunks": len(corpus.chunks),
        "chunks_embedded": computed,
        "chunks_truncated": truncated,
        "store_added": added,
        "store_removed": removed,
    }
    return Outcome(KIND, {name: float(value) for name, value in metrics.items()})


def files(config: Config) -> list[Path]:
    """The documents, and the local embedding model."""
    found = [source.file for source in sources(config.index)]
    return [*found, *model_files(config.index.embedding)]
