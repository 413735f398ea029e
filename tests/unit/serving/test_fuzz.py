"""Whatever a client sends, the server does not fail: requests made up from its own description."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_encoders import Summing, Weighing, encoder_app
from tests.unit.serving.fake_models import ListModel, say
from tests.unit.serving.tool_templates import tool_chat

POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/render",
    "/tokenize",
    "/detokenize",
)
FIELDS = {"message", "type", "param", "code"}  # of an error in OpenAI's format
HELLO = [{"role": "user", "content": "Hello"}]
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return tool_chat(tmp_path_factory.mktemp("fuzz"), "hermes")


@pytest.fixture(scope="module")
def app(chat: Chat) -> Iterator[Any]:
    model = ListModel(say(chat, "It costs 5 €."), vocab_size=chat.vocab_size, max_seq_len=400)
    engine = BatchingEngine(model, max_input_len=360, max_queue=64, guides=Guides(chat))
    yield create_app(engine, chat, model="bank", slots=4)
    engine.close()


def described(app: Any) -> dict[str, Any]:
    """The server's description, but for the model's name, which is the one that it has: others
    would be refused before anything else is looked at.
    """
    description = json.loads(json.dumps(app.openapi()))
    for schema in description["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"const": "bank"}
    return description


def check(response: Any) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        shape = {"message", "type"} if "type" in response.json() else FIELDS
        assert set(error) == shape
    else:
        assert not re.search(r'"error": ?{', response.text), "a stream ends with an error"


def send(app: Any, path: str, body: Any) -> None:
    """Send a value as JSON, or bytes as they are, and look at what comes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    check(ask(app, "POST", path, content=content, headers={"content-type": "application/json"}))


@pytest.fixture(scope="module", params=POSTS)
def operation(request: pytest.FixtureRequest, app: Any) -> Any:
    return schemathesis.openapi.from_dict(described(app))[request.param]["POST"]


@pytest.mark.parametrize(("engine", "path"), [
    (Summing(), "/v1/embeddings"), (Weighing(), "/v1/score"), (Weighing(), "/v2/rerank"),
    (Weighing(), "/v1/ranking"),
])  # fmt: skip
def test_requests_for_vectors_and_scores_made_up_from_the_description(
    engine: Any, path: str
) -> None:
    app = encoder_app(engine, model="bank")
    operation = schemathesis.openapi.from_dict(described(app))[path]["POST"]

    @settings(quick, max_examples=12)
    @given(case=operation.as_strategy())
    def send_each(case: Any) -> None:
        send(app, operation.path, case.body)

    send_each()


@settings(quick, max_examples=12)
@given(data=st.data())
def test_requests_made_up_from_the_description(
    app: Any, operation: Any, data: st.DataObject
) -> None:
    case = data.draw(operation.as_strategy())
    send(app, operation.path, case.body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
texts = st.text(max_size=9)
forms = st.sampled_from(
    [{"type": "object"}, {"enum": ["a", 1]}, {"type": "array", "maxItems": 2}, {"type": "null"}]
)
tools = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["pay", "f-1"])},
            optional={"description": texts, "parameters": forms | values},
        ),
    }
)
of_both = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 500),
    "min_p": st.floats(0, 1),
    "n": st.integers(1, 3),
    "seed": st.integers(),
    "stop": texts | st.lists(texts, max_size=4),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0, 10),
    "logit_bias": st.dictionaries(st.integers(0, 500).map(str), st.floats(-100, 100), max_size=3),
    "ignore_eos": st.booleans(),
    "stream": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "guided_json": forms | values,
    "guided_regex": texts,
    "guided_choice": st.lists(texts, max_size=3),
    "guided_grammar": texts,
}
of_chat = {
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "response_format": st.fixed_dictionaries(
        {
            "type": st.sampled_from(["text", "json_object", "json_schema"]),
            "json_schema": st.fixed_dictionaries({"name": texts, "schema": forms | values}),
        }
    ),
    "tools": st.lists(tools, max_size=2),
    "tool_choice": st.sampled_from(
        ["none", "auto", "required", {"type": "function", "function": {"name": "pay"}}]
    ),
    "parallel_tool_calls": st.booleans(),
}
of_text = {"logprobs": st.integers(0, 20), "echo": st.booleans(), "max_tokens": st.just(0)}
chats = st.fixed_dictionaries({"messages": st.just(HELLO)}, optional={**of_both, **of_chat})
completions = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["Cost?", [7, 8], ["a", "b"], [[7], [8, 9]]])},
    optional={**of_both, **of_text},
)


@settings(quick, max_examples=100)
@given(body=chats | completions)
def test_requests_that_mean_something(app: Any, body: dict[str, Any]) -> None:
    path = POSTS[0] if "messages" in body else POSTS[1]
    send(app, path, {"model": "bank", "max_tokens": 5, **body})


@pytest.mark.parametrize("path", POSTS[:2])
@quick
@given(data=st.data())
def test_good_requests_with_one_field_gone_wrong(app: Any, path: str, data: st.DataObject) -> None:
    asks = "ChatRequest" if "chat" in path else "CompletionRequest"
    names = sorted(app.openapi()["components"]["schemas"][asks]["properties"])
    good = {"model": "bank", "max_tokens": 5}
    good |= {"messages": HELLO} if "chat" in path else {"prompt": "Cost?"}
    send(app, path, {**good, data.draw(st.sampled_from(names)): data.draw(values)})


turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["system", "user", "assistant", "tool", "clerk"]),
            "content": st.text(max_size=9) | st.none() | values,
            "tool_calls": values,
            "tool_call_id": st.text(max_size=3),
            "name": values,
            "weight": values,
        },
    ),
    max_size=4,
)


@quick
@given(messages=turns, stream=st.booleans())
def test_conversations_of_any_shape(app: Any, messages: list[Any], stream: bool) -> None:
    send(app, POSTS[0], {"model": "bank", "messages": messages, "stream": stream, "max_tokens": 3})


@quick
@given(body=st.binary(max_size=200) | values)
@pytest.mark.parametrize("path", POSTS)
def test_bodies_of_any_kind(app: Any, path: str, body: Any) -> None:
    send(app, path, body)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b'{"n": 1e999}', b"\x00" * 9])
def test_bodies_meant_to_hurt(app: Any, path: str, body: bytes) -> None:
    send(app, path, body)


items = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(
                ["message", "function_call", "function_call_output", "reasoning", "text"]
            ),
            "role": st.sampled_from(["user", "assistant", "system", "clerk"]),
            "content": st.text(max_size=9) | st.none() | values,
            "call_id": values,
            "name": values,
            "arguments": values,
            "output": values,
            "summary": values,
        },
    ),
    max_size=4,
)


@quick
@given(items=items, stream=st.booleans())
def test_items_and_blocks_of_any_shape(app: Any, items: list[Any], stream: bool) -> None:
    more = {"model": "bank", "stream": stream}
    send(app, "/v1/responses", {**more, "input": items, "max_output_tokens": 3})
    turns = [{"role": "assistant", "content": items}, {"role": "user", "content": items}]
    for turn in turns:
        send(app, "/v1/messages", {**more, "messages": [turn], "max_tokens": 3})
