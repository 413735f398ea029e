"""An endpoint's vectors, and what it may answer instead."""

import json
from pathlib import Path

import httpx
import pytest

from pipeline.config.retrieval import EmbeddingConfig
from pipeline.core.errors import ConfigError, MissingRuntime
from pipeline.retrieval import embedding
from pipeline.retrieval.embedding import EndpointEmbedder, RetrievalFailed, model_folder
from tests.unit.retrieval.indexes import index_config


def endpoint(tmp_path, monkeypatch, answer, **changes) -> EndpointEmbedder:
    monkeypatch.setattr(embedding, "FIRST_PAUSE", 0)
    given = {"base_url": "http://127.0.0.1:9/v1", "model": "m", **changes}
    embedder = EndpointEmbedder(index_config(tmp_path, embedding=given).embedding)
    embedder._client = httpx.Client(transport=httpx.MockTransport(answer))
    return embedder


def vectors(request: httpx.Request) -> httpx.Response:
    count = len(json.loads(request.content)["input"])
    data = [{"index": i, "embedding": [3.0, 4.0 + i]} for i in reversed(range(count))]
    return httpx.Response(200, json={"data": data})


def test_vectors_come_in_the_order_of_the_texts_with_length_one(tmp_path, monkeypatch):
    found = endpoint(tmp_path, monkeypatch, vectors, batch_size=2).embed(["a", "b", "c"], "passage")
    assert found.shape == (3, 2)
    assert found[0].tolist() == pytest.approx([0.6, 0.8])
    assert found[1, 1] > found[0, 1] == found[2, 1]


def test_the_kind_of_text_and_its_prefix_are_sent(tmp_path, monkeypatch):
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        return vectors(request)

    embedder = endpoint(tmp_path, monkeypatch, answer, input_type=True, query_prefix="q: ")
    embedder.embed(["a"], "query")
    embedder.embed(["a"], "passage")
    assert [(body["input"], body["input_type"]) for body in sent] == [
        (["q: a"], "query"),
        (["a"], "passage"),
    ]


def test_a_busy_server_is_asked_again_and_a_question_does_not_wait(tmp_path, monkeypatch):
    asked = []

    def answer(request):
        asked.append(request)
        return vectors(request) if len(asked) == 3 else httpx.Response(503, text="busy")

    assert len(endpoint(tmp_path, monkeypatch, answer).embed(["a"], "passage")) == 1
    asked.clear()
    with pytest.raises(RetrievalFailed, match="status 503: busy"):
        endpoint(tmp_path, monkeypatch, answer).embed(["a"], "query")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(200, text="<html>"), "not a JSON object"),
        (httpx.Response(200, json={"data": [{"index": 0}]}), "unknown form"),
        (httpx.Response(200, json={"data": []}), "0 vectors for 1 texts"),
        (httpx.Response(200, json={"data": [{"index": 0, "embedding": [0.0]}]}), "zero"),
        (httpx.Response(401, json={"error": {"message": "no"}}), "status 401: no"),
        (httpx.Response(302, headers={"location": "http://other/"}), "status 302"),
    ],
)
def test_what_is_no_answer_is_explained(tmp_path, monkeypatch, answer, said):
    with pytest.raises(RetrievalFailed, match=said):
        endpoint(tmp_path, monkeypatch, lambda _: answer).embed(["a"], "passage")


def test_a_server_that_is_gone_is_explained(tmp_path):
    embedder = EndpointEmbedder(index_config(tmp_path).embedding)
    with pytest.raises(RetrievalFailed, match=r"http://127.0.0.1:9/v1 gives no answer"):
        embedder.embed(["a"], "query")
    embedder.close()


def test_a_key_that_is_not_set_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_KEY"):
        endpoint(tmp_path, monkeypatch, vectors, key_variable="NO_KEY")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "a"}, "two models"),
        ({"model": None}, "needs the model's name"),
        ({"base_url": None}, "are of an endpoint"),
        ({"base_url": None, "model": None, "query_prefix": "q"}, "no effect without a model"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, changes, said):
    given = {"base_url": "http://127.0.0.1:9/v1", "model": "m", **changes}
    with pytest.raises(ValueError, match=said):
        index_config(tmp_path, embedding=given)


def test_a_model_inside_a_package_is_found_without_its_code(tmp_path, monkeypatch):
    (tmp_path / "some_model/model").mkdir(parents=True)
    (tmp_path / "some_model/__init__.py").write_text("raise RuntimeError('it ran')")
    (tmp_path / "some_model/model/config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = index_config(
        tmp_path, embedding={"base_url": None, "model": None, "path": "package:some_model/model"}
    )
    assert isinstance(config.embedding, EmbeddingConfig)
    assert model_folder(config.embedding.path) == tmp_path / "some_model/model"
    for wrong, error in (("package:not_there/model", MissingRuntime), ("nowhere", ConfigError)):
        with pytest.raises(error):
            model_folder(Path(wrong))
