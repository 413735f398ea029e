"""Scores of a cross-encoder behind an endpoint, in the order of the passages."""

import json

import httpx
import pytest

from pipeline.config.retrieval import RerankerConfig
from pipeline.retrieval.embedding import RetrievalFailed
from pipeline.retrieval.rerank import EndpointReranker


def reranker(path: str, answer, sent: list | None = None) -> EndpointReranker:
    settings = {"model": "m", "key_variable": None, "candidates": 20}
    made = EndpointReranker(RerankerConfig(url=f"http://127.0.0.1:9/v1/{path}", **settings))

    def respond(request: httpx.Request) -> httpx.Response:
        if sent is not None:
            sent.append(json.loads(request.content))
        return httpx.Response(200, json=answer)

    made._client = httpx.Client(transport=httpx.MockTransport(respond))
    return made


def test_both_routes_are_asked_in_their_own_form():
    sent: list = []
    results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
    assert reranker("rerank", {"results": results}, sent).scores("q", ["a", "b"]) == [0.1, 0.9]
    rankings = [{"index": 1, "logit": 3.0}, {"index": 0, "logit": -1.0}]
    assert reranker("ranking", {"rankings": rankings}, sent).scores("q", ["a", "b"]) == [-1.0, 3.0]
    assert sent[0] == {"model": "m", "query": "q", "documents": ["a", "b"]}
    assert sent[1]["passages"] == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("answer", [{}, {"results": [{"index": 0, "relevance_score": 1}]}])
def test_a_passage_without_a_score_is_an_error(answer):
    with pytest.raises(RetrievalFailed, match="each of 2 passages a score"):
        reranker("rerank", answer).scores("q", ["a", "b"])
