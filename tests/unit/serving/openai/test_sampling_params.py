"""Fields of requests reach the engine, and unsupported ones are refused by name."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.engines.base import Client, Sampling
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say

SCHEMA = {
    "type": "object",
    "properties": {"cost": {"type": "integer"}, "currency": {"enum": ["USD", "EUR"]}},
    "required": ["cost", "currency"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "fee", "schema": SCHEMA, "strict": True}}
FEE = '{"cost":18,"currency":"USD"}'


class Spied(BatchingEngine):
    """Keeps what it was asked."""

    def generate(self, prompt: Any, sampling: Sampling) -> Any:
        self.asked = sampling
        return super().generate(prompt, sampling)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("settings"), "demo"))


@pytest.fixture
def engine(chat: Chat) -> Iterator[Spied]:
    model = ListModel(say(chat, FEE), vocab_size=chat.vocab_size, max_seq_len=96)
    engine = Spied(model, max_input_len=60, max_queue=4, guides=Guides(chat))
    yield engine
    engine.close()


@pytest.fixture
def app(engine: Spied, chat: Chat) -> Any:
    defaults = {"temperature": 0.0, "repetition_penalty": 1.0}
    return create_app(engine, chat, model="bank", slots=4, runtime="list", defaults=defaults)


def post(app: Any, path: str = "/v1/chat/completions", **body: Any) -> Any:
    asked: dict[str, Any] = {"model": "bank"}
    asked |= {"messages": [{"role": "user", "content": "Hello"}]} if "chat" in path else {}
    return ask(app, "POST", path, json={**asked, **body})


def test_settings_reach_the_engine(app: Any, engine: Spied, chat: Chat) -> None:
    response = post(
        app,
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=-1,
        frequency_penalty=0.1,
        presence_penalty=-0.2,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "6": 2},
        logprobs=True,
        top_logprobs=3,
    )
    assert response.status_code == 200
    assert engine.asked == Sampling(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=2**63 - 1,
        stop_ids=frozenset(chat.stop_ids),
        frequency_penalty=0.1,
        presence_penalty=-0.2,
        repetition_penalty=1.1,
        logit_bias={5: -100, 6: 2},
        logprobs=3,
        client=Client("127.0.0.1", "127.0.0.1:123"),
    )


def test_choices_differ_by_their_seeds_which_stay_in_range(app: Any, engine: Spied) -> None:
    asked = []
    generate = engine.generate

    def note(prompt: Any, sampling: Sampling) -> Any:
        asked.append(sampling.seed)
        return generate(prompt, sampling)

    engine.generate = note  # type: ignore[method-assign]
    assert post(app, seed=-1, n=3, max_tokens=1).status_code == 200
    assert asked == [2**63 - 1, 0, 1]


def test_fields_of_nim_are_read_at_the_top_level_and_in_nvext(app: Any, engine: Spied) -> None:
    fields = {"top_k": 3, "min_p": 0.2, "repetition_penalty": 1.2, "ignore_eos": True}
    post(app, max_tokens=5, **fields)
    at_the_top = engine.asked
    post(app, max_tokens=5, nvext=fields)
    assert engine.asked == at_the_top
    assert (at_the_top.top_k, at_the_top.min_p, at_the_top.stop_ids) == (3, 0.2, frozenset())
    post(app, max_tokens=5, top_k=4, nvext=fields)
    assert engine.asked.top_k == 4


def test_only_an_echo_may_have_no_tokens(app: Any, engine: Spied) -> None:
    assert post(app, "/v1/completions", prompt="Cost?", max_tokens=0, echo=True).status_code == 200
    assert engine.asked.max_tokens == 1


def test_a_models_own_penalty_is_for_engines_that_have_it(chat: Chat, engine: Spied) -> None:
    defaults = {"repetition_penalty": 1.3}
    app = create_app(engine, chat, model="bank", slots=4, defaults=defaults)
    for features, penalty in ((engine.features, 1.3), (frozenset(), 1.0)):
        engine.features = features
        assert post(app, max_tokens=1).status_code == 200
        assert engine.asked.repetition_penalty == penalty


def test_ignore_eos_continues_past_the_end(app: Any) -> None:
    choice = post(app, ignore_eos=True, max_tokens=40).json()["choices"][0]
    assert choice["finish_reason"] == "length"


def test_a_penalty_and_a_bias_change_the_output(app: Any, chat: Chat) -> None:
    first = chat.tokenizer.encode("{", add_special_tokens=False).ids[0]
    for change in ({"logit_bias": {str(first): -100}}, {"logit_bias": {"9": 100}}):
        text = post(app, max_tokens=1, **change).json()["choices"][0]["message"]["content"]
        assert text != "{"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"guided_json": SCHEMA}, r"(?s)\s*\{\s*\"cost\"\s*:.*\}\s*"),
        ({"guided_json": json.dumps(SCHEMA)}, r"(?s)\s*\{.*\}\s*"),
        ({"nvext": {"guided_regex": "[0-9]{2} (USD|EUR)"}}, r"\d\d (USD|EUR)"),
        ({"guided_choice": ["yes", "no €"]}, "yes|no €"),
        ({"guided_grammar": 'root ::= "cost " [0-9] [0-9]'}, r"cost \d\d"),
        ({"guided_grammar": 'start: "cost " /[0-9]/'}, r"cost \d"),
    ],
)
def test_outputs_match_the_guide(app: Any, path: str, form: dict[str, Any], pattern: str) -> None:
    how = {"prompt": "Cost?"} if path == "/v1/completions" else {}
    choice = post(app, path, max_tokens=60, **form, **how).json()["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert re.fullmatch(pattern, text), text


def test_response_formats(app: Any) -> None:
    for form in (FORMAT, {"type": "json_object"}):
        choice = post(app, response_format=form).json()["choices"][0]
        assert json.loads(choice["message"]["content"]) == json.loads(FEE)
        assert choice["finish_reason"] == "stop"
    streamed = post(app, response_format=FORMAT, stream=True, n=2)
    assert streamed.status_code == 200
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"guided_regex": "("}, "guided_regex", "is not valid: unclosed group"),
        ({"guided_json": "{"}, "guided_json", "this is not a JSON schema"),
        ({"guided_json": "[1]"}, "guided_json", "must be a JSON object"),
        ({"guided_json": {"enum": ["x" * 300_000]}}, "guided_json", "more than 262144 char"),
        ({"guided_json": {"uniqueItems": True}}, "guided_json", "uses uniqueItems, which this"),
        ({"guided_json": {"$ref": "#"}}, "guided_json", "refer to itself without end"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar", "not a grammar in Lark or GBNF"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"guided_choice": ["x"] * 1001}, "guided_choice", "at most 1000"),
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"type": 3}}}},
            *("response_format", "cannot follow the schema"),
        ),
        ({"guided_regex": "a", "response_format": FORMAT}, "response_format", "only one of"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "cannot ignore EOS"),
    ],
)
def test_invalid_guides_are_refused(
    app: Any, body: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    response = post(app, stream=stream, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"frequency_penalty": 0.1}, "frequency_penalty"),
        ("/v1/chat/completions", {"presence_penalty": -1}, "presence_penalty"),
        ("/v1/chat/completions", {"nvext": {"repetition_penalty": 1.1}}, "repetition_penalty"),
        ("/v1/chat/completions", {"logit_bias": {"1": 1}}, "logit_bias"),
        ("/v1/chat/completions", {"logprobs": True}, "logprobs"),
        ("/v1/completions", {"logprobs": 0}, "logprobs"),
        ("/v1/chat/completions", {"response_format": FORMAT}, "response_format"),
        ("/v1/completions", {"guided_choice": ["a"]}, "guided_choice"),
    ],
)
def test_what_the_engine_lacks_is_refused_by_name(
    app: Any, engine: Spied, path: str, body: dict[str, Any], param: str
) -> None:
    engine.features = frozenset()
    how = {"prompt": "Cost?"} if path == "/v1/completions" else {}
    response = post(app, path, **how, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert f"the list engine that serves this model does not support {param}" in error["message"]


def test_values_without_effect_need_no_feature(app: Any, engine: Spied) -> None:
    engine.features = frozenset()
    nothing = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1,
        "logit_bias": {},
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "prediction": {"type": "content", "content": "x"},
        "service_tier": "auto",
        "store": False,
    }
    assert post(app, **nothing).status_code == 200


def test_an_engine_without_prompt_scores_refuses_echo(app: Any, engine: Spied) -> None:
    engine.features = frozenset({"logprobs"})
    body = {"prompt": "Cost?", "logprobs": 1, "echo": True}
    error = post(app, "/v1/completions", **body).json()["error"]
    assert error["param"] == "echo"
    assert post(app, "/v1/completions", prompt="Cost?", max_tokens=0).status_code == 400
