"""A question finds what its key may see, and nothing with another embedding model."""

import pytest

from pipeline.core.errors import ConfigError
from pipeline.retrieval.search import Search
from pipeline.retrieval.stores.opening import open_store
from tests.unit.retrieval.indexes import WordEmbedder, index_config, make_index, write_documents


@pytest.fixture
def index(tmp_path):
    config = index_config(write_documents(tmp_path / "d"), labels={"staff/*": ["staff", "boss"]})
    return make_index(tmp_path / "out", config, WordEmbedder())


def search(index, embedder=None, **given):
    return Search(index, open_store(index), embedder or WordEmbedder(), **given)


def names(hits):
    return [hit.chunk.document for hit in hits]


def test_the_passage_that_answers_comes_first_with_its_cosine(index):
    hits = search(index).find("What does a wire abroad cost?", 2)
    assert hits[0].chunk.text == "A wire abroad costs 40 dollars."
    assert 0.3 < hits[0].score <= 1
    assert len(hits) == 2


@pytest.mark.parametrize(
    ("labels", "sees"),
    [((), False), (("guests",), False), (("staff",), True), (("x", "boss"), True), (("*",), True)],
)
@pytest.mark.parametrize("embeds", [True, False])
def test_a_labelled_document_is_found_only_with_one_of_its_labels(tmp_path, labels, sees, embeds):
    embedder = WordEmbedder() if embeds else None
    none = {"base_url": None, "model": None}
    config = index_config(
        write_documents(tmp_path / "d"),
        labels={"staff/*": ["staff", "boss"]},
        **({} if embeds else {"embedding": none}),
    )
    index = make_index(tmp_path / "out", config, embedder)
    found = Search(index, open_store(index), embedder).find(
        "How many dollars may cashiers hand out?", 9, labels=labels
    )
    assert ("staff/limits.md" in names(found)) == sees
    assert "wires.md" in names(found)


def test_a_code_that_the_model_does_not_understand_is_found_by_its_word(tmp_path):
    documents = {f"{n}.md": f"# Form {n}\n\nUse form K-{n} for it.\n" for n in range(100, 160)}
    index = make_index(
        tmp_path / "out", index_config(write_documents(tmp_path / "d", documents)), Vague()
    )
    found = Search(index, open_store(index), Vague()).find("What is form K-123 for?", 1)
    assert names(found) == ["123.md"]


class Vague(WordEmbedder):
    """Sees no difference between texts."""

    def _vector(self, text):
        return super()._vector("form")


def test_passages_below_the_least_score_are_not_found(index):
    assert not search(index).find("zebra", 3, min_score=0.5)
    assert not search(index).find("  ", 3)


def test_an_index_of_another_embedding_model_is_refused(index):
    with pytest.raises(ConfigError, match="another embedding model: the two give the same text"):
        search(index, WordEmbedder(seed=2)).find("wire", 1)
    with pytest.raises(ConfigError, match="512 dimensions, and those of the model at hand 32"):
        search(index, WordEmbedder(dimensions=32)).find("wire", 1)


def test_a_reranker_has_the_last_word_about_the_order(index):
    class Backwards:
        def scores(self, question, passages):
            assert question == "wire dollars"
            return [float(place) for place in range(len(passages))]

    plain = search(index).find("wire dollars", 9)
    ordered = search(index, reranker=Backwards(), candidates=3).find("wire dollars", 9)
    assert [hit.row for hit in ordered] == [hit.row for hit in reversed(plain[:3])]


def test_a_store_that_names_hidden_passages_is_not_believed(index):
    class Open:
        def nearest(self, vector, count, visible):
            return list(range(len(index)))

    hits = Search(index, Open(), WordEmbedder()).find("dollars", 9)
    assert "staff/limits.md" not in names(hits)
