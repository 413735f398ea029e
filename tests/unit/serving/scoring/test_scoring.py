"""Score, rerank and ranking, over an engine that weighs token ids."""

import json
from typing import Any

import pytest

from pipeline.serving.scoring.pairs import _longest_first
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_encoders import Weighing, encoder_app, word_tokenizer

# Special tokens weigh: [CLS] 0, the first [SEP] -1, the last +1. So a pair weighs the sum of the
# second text's ids, less that of the first's: wire 2, fee 3, card 4.


@pytest.fixture(scope="module")
def app() -> Any:
    return encoder_app(Weighing(), activation="Identity")


def post(app: Any, path: str, **body: Any) -> Any:
    return ask(app, "POST", path, json=body)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(("first", "second", "scores"), [
    ("wire", "card", [2]),
    ("wire", ["card", "wire fee"], [2, 3]),
    (["wire", "card"], ["card", "wire fee"], [2, 1]),
])  # fmt: skip
def test_scores_of_pairs(app: Any, path: str, first: Any, second: Any, scores: list[float]) -> None:
    answer = post(app, path, model="vectors", text_1=first, text_2=second).json()
    assert [entry["score"] for entry in answer["data"]] == scores
    assert [entry["index"] for entry in answer["data"]] == list(range(len(scores)))
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "score")
    assert answer["id"].startswith("score-")
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_best_first(app: Any, path: str) -> None:
    documents = ["wire", {"text": "card card"}, "fee", "card card"]
    answer = post(app, path, query="wire", documents=documents).json()
    found = [(r["index"], r["relevance_score"], r["document"]["text"]) for r in answer["results"]]
    assert found == [(1, 6, "card card"), (3, 6, "card card"), (2, 1, "fee"), (0, 0, "wire")]
    assert answer["usage"]["total_tokens"] == 22
    best = post(app, path, query="wire", documents=documents, top_n=1, return_documents=False)
    assert best.json()["results"] == [{"index": 1, "relevance_score": 6}]
    assert len(post(app, path, query="wire", documents=documents, top_n=0).json()["results"]) == 4


def test_nims_ranking_has_logits(app: Any) -> None:
    body: dict[str, Any] = {
        "query": {"text": "wire"},
        "passages": [{"text": "fee"}, {"text": "card"}],
    }
    answer = post(encoder_app(Weighing()), "/v1/ranking", model="vectors", **body).json()
    assert answer["rankings"] == [{"index": 1, "logit": 2.0}, {"index": 0, "logit": 1.0}]
    assert answer["usage"]["total_tokens"] == 10


def test_the_models_activation_makes_scores_of_logits() -> None:
    sigmoid = encoder_app(Weighing())
    given: dict[str, Any] = {"text_1": "wire", "text_2": ["card", "wire"]}
    scores = [e["score"] for e in post(sigmoid, "/v1/score", **given).json()["data"]]
    assert scores == pytest.approx([0.880797, 0.5])
    plain = post(sigmoid, "/v1/score", **given, use_activation=False).json()["data"]
    assert [entry["score"] for entry in plain] == [2, 0]


def test_texts_are_shortened_only_if_they_are_asked_to_be(app: Any) -> None:
    long = " ".join(["card"] * 20)
    refused = post(app, "/v1/rerank", query="wire", documents=["fee", long])
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "a pair has 24 tokens" in refused.json()["error"]["message"]
    for given, score in (
        ({"truncate_prompt_tokens": -1}, 5 * 4 - 2),  # 9 less 3 special ones, less the query's
        ({"truncate_prompt_tokens": 6}, 2 * 4 - 2),
        ({"max_tokens_per_doc": 3}, 3 * 4 - 2),
    ):
        (result,) = post(app, "/v1/rerank", query="wire", documents=[long], **given).json()[
            "results"
        ]
        assert result["relevance_score"] == score
    body: dict[str, Any] = {"query": {"text": "wire wire wire wire"}, "passages": [{"text": long}]}
    (ranking,) = post(app, "/v1/ranking", **body, truncate="END").json()["rankings"]
    assert ranking["logit"] == 2 * 4 - 4 * 2
    assert post(app, "/v1/ranking", **body).status_code == 400
    body["query"]["text"] = " ".join(["wire"] * 6)
    alone = post(app, "/v1/ranking", **body, truncate="END")
    assert "the query alone has 6 tokens" in alone.json()["error"]["message"]


@pytest.mark.parametrize("lengths", [(a, b) for a in (1, 3, 7, 12) for b in (1, 4, 7, 20)])
def test_the_longer_text_is_shortened_as_tokenizers_does(lengths: tuple[int, int]) -> None:
    tokenizer = word_tokenizer()
    for room in (2, 3, 5, 8, 11):
        tokenizer.enable_truncation(room + 3, strategy="longest_first")
        first, second = (" ".join(["fee"] * n) for n in lengths)
        types = tokenizer.encode(first, second).type_ids
        wanted = types.count(0) - 2, types.count(1) - 1
        kept = _longest_first(*lengths, room) if sum(lengths) > room else lengths
        assert kept == wanted, room


@pytest.mark.parametrize(("path", "body", "param", "words"), [
    ("/v1/score", {"text_1": "", "text_2": "fee"}, "text_1", "empty"),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2", "give as many, or one"),
    ("/v1/score", {"text_1": "a", "text_2": []}, "text_2", "from 1 to 2048 texts"),
    ("/v1/score", {"text_1": "a", "text_2": 5}, "text_2", "text or a list"),
    ("/v1/score", {"text_1": "a"}, "text_2", "Missing required"),
    ("/v1/score", {"text_1": "a", "text_2": "\ud800"}, "text_2", "surrogate"),
    ("/v1/rerank", {"query": "a", "documents": [""]}, "documents", "empty"),
    ("/v1/rerank", {"query": "a", "documents": ["b"] * 2049}, "documents", "at most 2048"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n", "at least 0"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "truncate_prompt_tokens": 4},
     "truncate_prompt_tokens", "at least"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "odd": 1}, "odd", "Unrecognized"),
    ("/v1/rerank", {"query": "a", "documents": ["wire" * 100_000]}, "documents", "400000 char"),
    ("/v1/ranking", {"query": "a", "passages": [{"text": "b"}]}, "query", "an object"),
    ("/v1/ranking", {"query": {"text": "a"}, "passages": [{"text": "b"}], "truncate": "START"},
     "truncate", "NONE"),
    ("/v1/score", {"text_1": "a", "text_2": "b", "model": "other"}, "model", "'other'"),
])  # fmt: skip
def test_bad_requests_are_refused(
    app: Any, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    response = ask(
        app, "POST", path, content=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert response.status_code == (404 if param == "model" else 400), response.text
    assert response.json()["error"]["param"] == param
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/tokenize"])
def test_a_reranker_has_the_routes_of_a_reranker(app: Any, path: str) -> None:
    response = post(app, path, messages=[])
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message == (
        f"the model 'vectors' scores texts and has no {path}: use /v1/rerank or /v1/score"
    )


def test_tokens_are_charged_and_counted(app: Any) -> None:
    post(app, "/v1/score", text_1="wire", text_2="fee")
    text = ask(app, "GET", "/metrics").text
    assert 'prompt_tokens_total{model_name="vectors"}' in text
    assert "request_success_total" in text
