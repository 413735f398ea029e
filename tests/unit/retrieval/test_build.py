"""An index is made of what changed: digests decide, deletes are followed, killed runs resume."""

import json

import numpy as np
import pytest

from pipeline.core.errors import ArtifactError, DataError
from pipeline.retrieval import build
from pipeline.retrieval.corpus import sources
from pipeline.retrieval.index import Index
from tests.unit.retrieval.indexes import WordEmbedder, index_config, make_index, write_documents


def test_an_index_has_every_passage_with_its_vector(tmp_path):
    embedder = WordEmbedder()
    index = make_index(tmp_path / "out", index_config(write_documents(tmp_path / "d")), embedder)
    assert [index.chunk(row).document for row in range(len(index))] == [
        "cards.txt",
        "staff/limits.md",
        "wires.md",
        "wires.md",
    ]
    for row in range(len(index)):
        expected = embedder.embed([index.chunk(row).indexed], "passage")[0]
        assert index.vectors[row].tolist() == expected.tolist()
    assert index.documents()["wires.md"]["chunks"] == 2


def test_only_changed_texts_are_embedded_again_and_deleted_ones_are_gone(tmp_path):
    config = index_config(write_documents(tmp_path / "d"))
    known = build.Known(build.identity(config.embedding))
    first = make_index(tmp_path / "one", config, WordEmbedder(), known)
    (tmp_path / "d/cards.txt").unlink()
    text = (tmp_path / "d/wires.md").read_text().replace("18", "19")
    (tmp_path / "d/wires.md").write_text(text)
    embedder = WordEmbedder()
    second = make_index(tmp_path / "two", config, embedder, known)
    assert embedder.embedded == ["Wires > At home\nA wire at home costs 19 dollars."]
    assert {second.chunk(row).document for row in range(3)} == {"staff/limits.md", "wires.md"}
    assert len(set(second.ids) & set(first.ids)) == 2


def test_a_run_that_was_killed_resumes_with_what_it_had_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "GROUP", 1)
    config = index_config(write_documents(tmp_path / "d"))
    work = tmp_path / ".work/index-1"
    work.mkdir(parents=True)

    class Killed(WordEmbedder):
        def embed(self, texts, kind):
            if len(self.embedded) == 2:
                raise KeyboardInterrupt
            return super().embed(texts, kind)

    with pytest.raises(KeyboardInterrupt):
        make_index(work, config, Killed())
    file = next(work.glob(".scratch/embedded-*"))
    file.write_bytes(file.read_bytes() + b"\1\0\0\0\0\0\0\0half of a part")
    known = build.Known(build.identity(config.embedding))
    known.add_files(tmp_path / ".work")
    embedder = WordEmbedder()
    index = make_index(tmp_path / "out", config, embedder, known)
    assert len(embedder.embedded) == len(index) - 2
    row = np.array(WordEmbedder().embed([index.chunk(0).indexed], "passage")[0])
    assert index.vectors[0].tolist() == row.tolist()


def test_vectors_of_another_model_are_not_reused(tmp_path):
    config = index_config(write_documents(tmp_path / "d"))
    other = config.but(embedding={"model": "others"})
    assert build.identity(config.embedding) != build.identity(other.embedding)
    make_index(tmp_path / ".work/index-1", config, WordEmbedder())
    known = build.Known(build.identity(other.embedding))
    known.add_files(tmp_path / ".work")
    chunk = build.read_corpus(config, sources(config), lambda _: None).chunks[0]
    assert chunk.key not in known


def test_a_document_without_text_is_left_out_and_named(tmp_path):
    config = index_config(write_documents(tmp_path))
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "headings.md").write_text("# Only\n\n## Headings\n")
    corpus = build.read_corpus(config, sources(config), lambda _: None)
    assert set(corpus.skipped) == {"empty.md", "headings.md"}
    assert "empty.md" in corpus.skipped["empty.md"]


def test_documents_that_all_have_no_text_are_an_error(tmp_path):
    (tmp_path / "empty.md").write_text("")
    config = index_config(tmp_path)
    with pytest.raises(DataError, match="no document has usable text"):
        build.read_corpus(config, sources(config), lambda _: None)


def test_the_same_text_twice_in_a_document_is_two_passages(tmp_path):
    same = "# A\n\n## B\n\nSame.\n\n## B\n\nSame.\n"
    index = make_index(
        tmp_path / "out", index_config(write_documents(tmp_path / "d", {"a.md": same}))
    )
    assert len(set(index.ids)) == len(index) == 2


def test_files_of_different_lengths_are_refused(tmp_path):
    out = tmp_path / "out"
    make_index(out, index_config(write_documents(tmp_path / "d")), WordEmbedder())
    np.save(out / "groups.npy", np.zeros(2, np.uint32))
    with pytest.raises(ArtifactError, match="differ in length"):
        Index(out, "")
    (out / "index.json").write_text(json.dumps({"name": "bank"}))
    with pytest.raises(ArtifactError, match="run stage=index again"):
        Index(out, "")
