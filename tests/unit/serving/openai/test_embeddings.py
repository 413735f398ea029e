"""The embeddings endpoint, over an engine that makes vectors of sums."""

import base64
from typing import Any

import numpy as np
import pytest

from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_encoders import Summing, encoder_app


@pytest.fixture(scope="module")
def app() -> Any:
    return encoder_app(Summing())


def post(app: Any, path: str = "/v1/embeddings", **body: Any) -> Any:
    return ask(app, "POST", path, json={"model": "vectors", **body})


def test_texts_have_the_special_tokens_of_their_model(app: Any) -> None:
    from openai.types import CreateEmbeddingResponse

    body = post(app, input=["wire fee", "card"]).json()
    answer = CreateEmbeddingResponse.model_validate(body, strict=True)
    assert [entry.embedding for entry in answer.data] == [[4, 6, 1], [3, 5, 1]]
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 7
    assert answer.model == "vectors"


@pytest.mark.parametrize(
    ("given", "vectors"),
    [("wire", [[3, 3, 1]]), ([2, 3], [[2, 5, 3]]), ([[2], [4, 4]], [[1, 2, 2], [2, 8, 4]])],
)
def test_inputs_are_texts_or_token_ids(app: Any, given: Any, vectors: Any) -> None:
    data = post(app, input=given).json()["data"]
    assert [entry["embedding"] for entry in data] == vectors


def test_base64_is_float32_as_openais_client_reads_it(app: Any) -> None:
    (entry,) = post(app, input="wire", encoding_format="base64").json()["data"]
    assert np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").tolist() == [3, 3, 1]


def test_fewer_dimensions_have_length_one_again(app: Any) -> None:
    (entry,) = post(app, input=[2, 2], dimensions=2).json()["data"]
    assert entry["embedding"] == pytest.approx([2 / 20**0.5, 4 / 20**0.5])


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "give text, token ids or a list of either"),
        ({"input": [1, "a"]}, "input", "give text, token ids or a list of either"),
        ({"input": ["wire", ""]}, "input", "empty"),
        ({"input": ["wire"] * 2049}, "input", "at most 2048"),
        ({"input": [9]}, "input", "from 0 to 4"),
        ({"input": [-1]}, "input", "from 0 to 4"),
        ({"input": ["\ud800"]}, "input", "surrogate"),
        ({"input": "wire " * 5}, "input", "length is 6 tokens. However, a text has 7"),
        ({"input": "wire", "dimensions": 4}, "dimensions", "have only 3 dimensions"),
        ({"input": "wire", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": "wire", "model": "other"}, "model", "'other' does not exist"),
    ],
)
def test_bad_inputs_are_refused(app: Any, body: dict[str, Any], param: str, words: str) -> None:
    response = post(app, **body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param
    assert words in response.json()["error"]["message"]


def test_requests_that_succeed_are_counted_and_those_alone(app: Any) -> None:
    def counted() -> list[float]:
        lines = dict(line.rsplit(" ", 1) for line in ask(app, "GET", "/metrics").text.splitlines())
        names = ("request_success_total", "e2e_request_latency_seconds_count")
        return [float(lines[name + '{model_name="vectors"}']) for name in names]

    before = counted()
    assert post(app, input=["wire", "card"]).status_code == 200
    assert post(app, input="wire", dimensions=4).status_code == 400
    assert counted() == [count + 1 for count in before]


def test_it_generates_no_text(app: Any) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
    ):
        response = post(app, path, **body)
        assert response.status_code == 404
        message = response.json()["error"]["message"]
        assert (
            message == f"the model 'vectors' makes embeddings and has no {path}: use /v1/embeddings"
        )


def test_what_the_engine_refuses_is_the_inputs_fault(app: Any) -> None:
    refused = post(app, input=[[1], [4, 4, 4]])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "input"
    assert refused.json()["error"]["message"] == "4 thrice"


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(app: Any) -> None:
    refused = post(app, input=["fee", "wire" * 100_000])
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "a text has 400000 characters" in refused.json()["error"]["message"]
