"""Tool calls: how a template writes them, how they are parsed, and OpenAI's format of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.batching.guided_decoding import Guides, grammar_of, tokens_of
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.openai import tools
from pipeline.serving.openai.tools import ToolCallFormat, ToolCallParser
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


def test_the_style_is_read_off_the_template(chats: dict[str, Chat]) -> None:
    assert {name: tools.tool_call_format(chat) for name, chat in chats.items()} == {
        "hermes": ToolCallFormat("<tool_call>\n", "\n</tool_call>", "arguments", listed=False),
        "llama": ToolCallFormat("", "", "parameters", listed=False),
        "mistral": ToolCallFormat("[TOOL_CALLS] ", "", "arguments", listed=True),
    }
    assert all(tools.accepts_tools(chat) for chat in chats.values())
    marked = {
        name: tools.has_control_tokens(c, tools.tool_call_format(c)) for name, c in chats.items()
    }
    assert marked == {"hermes": False, "llama": False, "mistral": True}


@pytest.mark.parametrize("plain", ["demo", "chatml", "gemma", "mistral"])
def test_a_template_without_tools_has_no_format(tmp_path: Path, plain: str) -> None:
    chat = Chat.load(make_model_folder(tmp_path, plain))
    assert not tools.accepts_tools(chat)
    assert tools.tool_call_format(chat) is None


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
    (call,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert call.index == 0
    assert call.id
    assert call.function
    assert (call.function.name, json.loads(call.function.arguments or "")) == (
        *("weather", {"town": "Rome"}),
    )
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
    style = tools.tool_call_format(chat)
    assert style
    grammar = grammar_of(tools.guide_for(chat, style, [tool]))
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


def read(style: ToolCallFormat, text: str, sizes: list[int]) -> tuple[str, list[tuple[str, Any]]]:
    """What a reader makes of a text that comes in parts of these sizes, then in one."""
    reader, shown, calls = ToolCallParser(style), "", []
    for size in [*sizes, len(text)]:
        part, text = text[:size], text[size:]
        new_text, new_calls = reader.feed(part)
        shown += new_text
        calls += [(call.name, json.loads(call.arguments)) for call in new_calls]
    return shown + reader.finish(), calls


HERMES = ToolCallFormat("<tool_call>\n", "\n</tool_call>", "arguments", listed=False)
BARE = ToolCallFormat("", "", "parameters", listed=False)
LISTED = ToolCallFormat("[TOOL_CALLS] ", "", "arguments", listed=True)
ONE = ("weather", {"town": "Rome"})


@pytest.mark.parametrize(
    ("style", "text", "shown", "calls"),
    [
        (HERMES, "No  call < at all. ", "No  call < at all. ", []),
        (HERMES, f"<tool_call>\n{ROME}\n</tool_call>", "", [ONE]),
        (HERMES, f"So:\n<tool_call>{ROME}</tool_call>\n<tool_call>{ROME}", "So:", [ONE, ONE]),
        (HERMES, f"<tool_call>{ROME}</tool_call> Done.", " Done.", [ONE]),
        (HERMES, '<tool_call>\n{"name": "wea', '<tool_call>\n{"name": "wea', []),
        (HERMES, "<tool_call>\n{}\n</tool_call>", "<tool_call>\n{}\n</tool_call>", []),
        (BARE, '{"name": "f", "parameters": {}}', "", [("f", {})]),
        (BARE, '{"cost": 18}', '{"cost": 18}', []),
        (BARE, 'So {"name": "f", "parameters": {}}', 'So {"name": "f", "parameters": {}}', []),
        (LISTED, f"[TOOL_CALLS] [{ROME}, {ROME}]", "", [ONE, ONE]),
        (LISTED, "[TOOL_CALL]", "[TOOL_CALL]", []),
        *((BARE, odd, odd, []) for odd in (
            '{"name": "f", "parameters": {"x": NaN}}',
            '{"name": "f", "parameters": {"x": 1e999}}',
            '{"name": "f", "parameters": "not json"}',
            '{"name": "f", "parameters": "{\\"x\\": NaN}"}',
            '{"name": {"a": 1}, "parameters": {}}',
        )),
        (BARE, '{"name": "f", "parameters": "{\\"x\\": 1}"}', "", [("f", {"x": 1})]),
        (BARE, '{"name": "\\ud800", "parameters": "\\"\\ud800\\""}', "", [("?", "?")]),
    ],
)  # fmt: skip
@given(sizes=st.lists(st.integers(1, 12), max_size=12))
def test_calls_are_read_however_they_come(
    style: ToolCallFormat, text: str, shown: str, calls: list[Any], sizes: list[int]
) -> None:
    assert read(style, text, sizes) == (shown, calls)


def test_nesting_too_deep_to_be_read_is_text() -> None:
    text = "[" * 100_000
    assert read(BARE, text, []) == (text, [])
