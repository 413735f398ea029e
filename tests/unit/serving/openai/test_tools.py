"""Tool calls: how a template writes them, how they are parsed, and OpenAI's format of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.batching.guided_decoding import Guides, grammar_of, tokens_of
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.parsers.detection import answer_format
from pipeline.serving.parsers.families import tools_guide
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say
from tests.unit.serving.tool_templates import FAMILIES, tool_chat

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Rome", "Oslo"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
PAY = {"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}
CONTROL = "<|im_end|></s><|eot_id|>"  # of one family or another
HELLO = [{"role": "user", "content": "Hello"}]
ROME = '{"name": "weather", "arguments": {"town": "Rome"}}'
# What a model of each family says when it calls for the weather in Rome.
SAID = {
    "hermes": f"I will look.\n<tool_call>\n{ROME}\n</tool_call>",
    "llama": '{"name": "weather", "parameters": {"town": "Rome"}}',
    "mistral": f"[TOOL_CALLS] [{ROME}]",
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    return {name: tool_chat(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


class Server:
    """An application over a model that says one thing."""

    def __init__(self, chat: Chat, text: str) -> None:
        model = ListModel(say(chat, text), vocab_size=chat.vocab_size, max_seq_len=900)
        self.engine = BatchingEngine(model, max_input_len=800, max_queue=9, guides=Guides(chat))
        self.app = create_app(self.engine, chat, model="bank", slots=4, defaults={"temperature": 0})

    def post(self, **body: Any) -> Any:
        given = {"model": "bank", "messages": HELLO, **body}
        return ask(self.app, "POST", "/v1/chat/completions", json=given)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(chats: dict[str, Chat], family: str) -> Iterator[Server]:
    server = Server(chats[family], SAID[family])
    yield server
    server.engine.close()


@pytest.mark.parametrize("plain", ["demo", "chatml", "gemma", "mistral"])
def test_a_template_without_tools_has_no_format(tmp_path: Path, plain: str) -> None:
    chat = Chat.load(make_model_folder(tmp_path, plain))
    assert not answer_format(chat).accepts_tools
    assert answer_format(chat).tools is None


def test_a_call_is_returned_in_openais_format(server: Server, family: str) -> None:
    from openai.types.chat import ChatCompletion

    body = server.post(tools=[WEATHER, PAY]).json()
    choice = ChatCompletion.model_validate(body, strict=True).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == ("I will look." if family == "hermes" else None)
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"town": "Rome"}
    assert re.fullmatch(r"[A-Za-z0-9]{9}", call.id)


def test_a_call_is_streamed_in_openais_form(server: Server, family: str) -> None:
    from openai.types.chat import ChatCompletionChunk

    lines = server.post(tools=[WEATHER], stream=True).text.strip().split("\n\n")
    assert lines.pop() == "data: [DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(line[6:], strict=True) for line in lines]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    text = "".join(delta.content or "" for delta in deltas)
    assert text == ("I will look." if family == "hermes" else "")
    first, *rest = [call for delta in deltas for call in delta.tool_calls or []]
    assert first.id
    assert first.function
    assert (first.index, first.function.name) == (0, "weather")
    pieces = [call.function.arguments or "" for call in rest if call.function]
    assert json.loads("".join(pieces)) == {"town": "Rome"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_forced_call_matches_the_tools_schema(chats: dict[str, Chat], family: str) -> None:
    server = Server(chats[family], "I would rather talk.")
    named = {"type": "function", "function": {"name": "weather"}}
    try:
        for choice, reason in ((named, "stop"), ("required", "tool_calls")):
            body = server.post(tools=[WEATHER], tool_choice=choice, max_tokens=100).json()
            (answer,) = body["choices"]
            assert answer["finish_reason"] == reason
            (call,) = answer["message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
            assert json.loads(call["function"]["arguments"])["town"] in ("Rome", "Oslo")
        none = server.post(tools=[WEATHER], tool_choice="none").json()["choices"][0]
        assert none["message"]["content"] == "I would rather talk."
    finally:
        server.engine.close()


def nested(towns: list[str], root: str = "#/$defs/Town") -> dict[str, Any]:
    """What pydantic makes of a model inside of a model; other tools' have the same names."""
    return {
        "type": "object",
        "$defs": {"Town": {"enum": towns}},
        "properties": {"town": {"$ref": root}},
        "required": ["town"],
        "additionalProperties": False,
    }


NAMED_ROOT = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "definitions": {"Trip": {**nested([]), "properties": {"town": {"enum": ["Bonn"]}}}},
    "$ref": "#/definitions/Trip",
}  # as zod-to-json-schema writes it


@pytest.mark.parametrize("parameters", [
    nested(["Bonn"]),
    nested(["Bonn"], "#/properties/other") | {
        "properties": {"town": {"$ref": "#/properties/other"}, "other": {"enum": ["Bonn"]}}
    },
    {"$defs": {"Trip": {**nested([]), "properties": {"town": {"enum": ["Bonn"]}}}},
     "$ref": "#/$defs/Trip"},
    nested(["Bonn"]) | {"$id": ""},
    NAMED_ROOT,
])  # fmt: skip
def test_references_in_a_forced_calls_schema_are_its_own(
    chats: dict[str, Chat], family: str, parameters: dict[str, Any]
) -> None:
    trip = {"type": "function", "function": {"name": "trip", "parameters": parameters}}
    rain = {"type": "function", "function": {"name": "rain", "parameters": nested(["Kiel"])}}
    named = {"type": "function", "function": {"name": "trip"}}
    server = Server(chats[family], "I would rather talk.")
    try:
        for tools_, choice in (([rain, trip], named), ([trip, rain], "required")):
            response = server.post(tools=tools_, tool_choice=choice, max_tokens=100)
            assert response.status_code == 200, response.text
            (call,) = response.json()["choices"][0]["message"]["tool_calls"]
            town = json.loads(call["function"]["arguments"])["town"]
            assert town == {"trip": "Bonn", "rain": "Kiel"}[call["function"]["name"]]
    finally:
        server.engine.close()


@pytest.mark.parametrize(("inner", "fits"), [('{"town":"Kiel"}', True), ("{}", False)])
def test_references_in_a_schema_start_at_the_tools_own_root(
    chats: dict[str, Chat], inner: str, fits: bool
) -> None:
    import llguidance

    chat = chats["llama"]
    parameters = nested(["Kiel"])
    parameters["properties"]["next"] = {"$ref": "#"}
    tool = {"type": "function", "function": {"name": "trip", "parameters": parameters}}
    family = answer_format(chat).tools
    assert family
    grammar = grammar_of(tools_guide(chat, family, [tool]))
    said = '{"name":"trip","parameters":{"town":"Kiel","next":' + inner + "}}"
    ids = chat.tokenizer.encode(said, add_special_tokens=False).ids
    taken = llguidance.LLMatcher(tokens_of(chat), grammar, log_level=0).try_consume_tokens(ids)
    assert (taken == len(ids)) == fits


def test_a_conversation_continues_with_tool_results(server: Server, chats: dict[str, Chat]) -> None:
    message = server.post(tools=[WEATHER]).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
    body = server.post(tools=[WEATHER], messages=[*HELLO, message, result]).json()
    again = server.post(tools=[WEATHER], messages=HELLO).json()
    assert body["usage"]["prompt_tokens"] > again["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "not among tools"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "forces a call",
        ),
        (
            {"messages": [*HELLO, {"role": "tool", "content": "x", "tool_call_id": "other"}]},
            "no earlier assistant turn has that call",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": "a"}]}]},
            "messages[1].tool_calls[0]",
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "["}}],
                    },
                ]
            },
            "arguments in a JSON object",
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "a", "function": {"name": "f", "arguments": "[" * 5000}}
                        ],
                    },
                ]
            },
            "arguments in a JSON object",
        ),
        ({"tools": [{**PAY, "function": {"name": "two words"}}]}, "tools"),
        (
            {
                "tools": [
                    {**PAY, "function": {"name": "f", "description": "<|im_end|></s><|eot_id|>"}}
                ]
            },
            "which the model reads as structure",
        ),
        ({"tools": [{**PAY, "function": {"name": "f", "description": "\ud800"}}]}, "surrogate"),
    ],
)
def test_bad_tools_are_refused(server: Server, body: dict[str, Any], words: str) -> None:
    response = server.post(**{"tools": [WEATHER], **body})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_template_without_tools_is_named(tmp_path: Path) -> None:
    server = Server(Chat.load(make_model_folder(tmp_path, "demo")), "x")
    try:
        response = server.post(tools=[PAY])
        assert response.status_code == 400
        assert "template of 'bank' does not support tools" in response.json()["error"]["message"]
    finally:
        server.engine.close()


def test_strict_tools_leave_the_choice_to_the_model(chats: dict[str, Chat], family: str) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    for text, called in (("I would rather talk.", False), (SAID[family], True)):
        server = Server(chats[family], text)
        try:
            message = server.post(tools=[strict], max_tokens=100).json()["choices"][0]["message"]
            assert bool(message.get("tool_calls")) == called
            if not called:
                assert message["content"] == text
        finally:
            server.engine.close()


def test_a_strict_tools_arguments_match_its_schema(chats: dict[str, Chat], family: str) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    server = Server(chats[family], SAID[family].replace("Rome", "Bonn"))
    try:
        (call,) = server.post(tools=[strict], max_tokens=100).json()["choices"][0]["message"][
            "tool_calls"
        ]
        assert json.loads(call["function"]["arguments"])["town"] in ("Rome", "Oslo")
    finally:
        server.engine.close()


def test_allowed_tools_are_the_only_ones_that_are_called(server: Server, family: str) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "pay"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    shown = server.post(tools=[WEATHER, PAY]).json()["usage"]["prompt_tokens"]
    body = server.post(tools=[WEATHER, PAY], tool_choice=choice, max_tokens=100).json()
    assert body["usage"]["prompt_tokens"] == shown
    for call in body["choices"][0]["message"].get("tool_calls", []):
        assert call["function"]["name"] == "pay"
    allowed["tools"][0]["function"]["name"] = "other"  # type: ignore[index]
    assert server.post(tools=[WEATHER], tool_choice=choice).status_code == 400
