"""BM25 gives the scores of its definition, and survives the way to the disk."""

import math

import pytest

from pipeline.core.errors import DataError
from pipeline.retrieval.bm25 import K1, B, Bm25, words

TEXTS = ["a wire abroad costs 40 dollars", "a card", "a wire", "国際送金の手数料", ""]


def by_definition(question: str, text: str) -> float:
    documents = [words(t) for t in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    total = 0.0
    for word in set(words(question)):
        frequency = sum(word in document for document in documents)
        count = words(text).count(word)
        idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
        length = K1 * (1 - B + B * len(words(text)) / mean)
        total += idf * count * (K1 + 1) / (count + length)
    return total


@pytest.mark.parametrize("question", ["wire abroad", "WIRE, wire!", "手数料", "nothing known", ""])
def test_scores_are_those_of_the_definition(tmp_path, question):
    Bm25.build(TEXTS).save(tmp_path)
    scores = Bm25.load(tmp_path).scores(question)
    assert scores.tolist() == pytest.approx([by_definition(question, t) for t in TEXTS], abs=1e-5)


def test_coverage_is_the_share_of_the_questions_words_and_unknown_words_count():
    bm25 = Bm25.build(TEXTS)
    assert bm25.coverage("wire abroad", [0, 1]) == [1.0, 0.0]
    half = bm25.coverage("wire to Mars", [0])[0]
    assert 0 < half < 0.5
    assert bm25.coverage("", [0]) == [0.0]


def test_an_empty_index_is_searched(tmp_path):
    Bm25.build([]).save(tmp_path)
    assert Bm25.load(tmp_path).scores("wire").tolist() == []


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    Bm25.build(TEXTS).save(tmp_path)
    (tmp_path / "terms.txt").write_text("wire\n")
    with pytest.raises(DataError, match="differ"):
        Bm25.load(tmp_path)
