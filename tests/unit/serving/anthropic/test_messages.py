"""The Messages API: whole messages, events, and errors in Anthropic's format.

bench/clients/anthropic_messages.py asks with Anthropic's own client.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.anthropic.conversation import messages_of
from pipeline.serving.app import create_app
from pipeline.serving.keyring import Keyring, digest
from pipeline.serving.middleware.stack import MiddlewareStack
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say
from tests.unit.serving.test_behaviours import thinking_chat
from tests.unit.serving.tool_templates import tool_chat

HELLO = [{"role": "user", "content": "Hello"}]
CALL = 'I will look.\n<tool_call>\n{"name":"weather","arguments":{"town":"Rome"}}\n</tool_call>'
WEATHER = {
    "name": "weather",
    "description": "Weather of a town",
    "input_schema": {
        "type": "object",
        "properties": {"town": {"enum": ["Rome"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
}
Post = Callable[..., Any]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    folder = tmp_path_factory.mktemp("messages")
    return {
        "hermes": tool_chat(folder / "hermes", "hermes"),
        "thinking": thinking_chat(folder / "thinking"),
    }


@pytest.fixture
def post(chats: dict[str, Chat]) -> Iterator[Post]:
    engines = []

    def post(said: str, path: str = "/v1/messages", kind: str = "hermes", **body: Any) -> Any:
        chat = chats[kind]
        model = ListModel(say(chat, said), vocab_size=chat.vocab_size, max_seq_len=900)
        engine = BatchingEngine(model, max_input_len=800, max_queue=9, guides=Guides(chat))
        engines.append(engine)
        app = create_app(engine, chat, model="bank", slots=4, defaults={"temperature": 0})
        given = {"model": "bank", "messages": HELLO, **body}
        if path == "/v1/messages":
            given = {"max_tokens": 200, **given}
        return ask(app, "POST", path, json=given)

    yield post
    for engine in engines:
        engine.close()


def events(response: Any) -> list[tuple[str, dict[str, Any]]]:
    blocks = response.text.strip().split("\n\n")
    pairs = [block.split("\n") for block in blocks]
    return [(name[7:], json.loads(data[6:])) for name, data in pairs]


def test_a_message(post: Post) -> None:
    body = post("It costs 5.", system="Be short.").json()
    assert body["content"] == [{"type": "text", "text": "It costs 5."}]
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "bank")
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["input_tokens"] > 10
    assert body["usage"]["output_tokens"] > 3


def test_a_stream_has_the_same_message(post: Post) -> None:
    whole = post(CALL, tools=[WEATHER]).json()
    stream = events(post(CALL, tools=[WEATHER], stream=True))
    assert all(data["type"] == name for name, data in stream)
    names = [name for name, _ in stream]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    text, call = whole["content"]
    assert text == {"type": "text", "text": "I will look."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"town": "Rome"})
    assert whole["stop_reason"] == "tool_use"
    deltas = [data for name, data in stream if name == "content_block_delta"]
    pieces = [d["delta"]["partial_json"] for d in deltas if d["index"] == 1]
    assert json.loads("".join(pieces)) == {"town": "Rome"}
    assert "".join(d["delta"].get("text", "") for d in deltas) == "I will look."
    (end,) = [data for name, data in stream if name == "message_delta"]
    assert end["delta"]["stop_reason"] == "tool_use"
    assert end["usage"] == whole["usage"]


def test_thoughts_are_blocks_of_their_own(post: Post) -> None:
    said = "<think>\nHm.\n</think>\n\nIt costs 5."
    thought, text = post(said, kind="thinking").json()["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text["text"] == "It costs 5."
    kinds = [
        data["content_block"]["type"]
        for name, data in events(post(said, kind="thinking", stream=True))
        if name == "content_block_start"
    ]
    assert kinds == ["thinking", "text"]


def test_how_an_answer_ended(post: Post) -> None:
    assert post("It costs 5.", max_tokens=2).json()["stop_reason"] == "max_tokens"
    stopped = post("It costs 5.", stop_sequences=["costs"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "costs")
    assert stopped["content"][0]["text"] == "It "


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_can_be_forced(post: Post, choice: dict[str, str]) -> None:
    body = post("Talk.", tools=[WEATHER], tool_choice=choice, max_tokens=100).json()
    assert [block["type"] for block in body["content"]] == ["tool_use"]


def test_a_form_can_be_asked_for(post: Post) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}
    body = post("?", output_config={"format": form}).json()
    assert json.loads(body["content"][0]["text"]) in ("yes", "no")


def test_tokens_are_counted(post: Post) -> None:
    counted = post("Yes", "/v1/messages/count_tokens", tools=[WEATHER]).json()["input_tokens"]
    assert counted == post("Yes", tools=[WEATHER]).json()["usage"]["input_tokens"]


def test_blocks_become_messages() -> None:
    given: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "rain"},
                {"type": "text", "text": "d"},
            ],
        },
    ]
    question, answer, result, more = messages_of(given)
    assert question == {"role": "user", "content": "ab"}
    assert (answer["content"], answer["reasoning_content"]) == ("c", "hm")
    assert answer["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert result == {"role": "tool", "tool_call_id": "1", "content": "rain"}
    assert more == {"role": "user", "content": "d"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "at least one turn"),
        ({"messages": [{"role": "clerk", "content": "x"}]}, "needs a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text (image)"),
        ({"messages": [{"role": "user", "content": 5}]}, "a list of blocks"),
        ({"temperature": 1.5}, "at most 1"),
        ({"stop_sequences": ["x"] * 40}, "stop_sequences"),
        ({"mcp_servers": [{"url": "u"}]}, "does not support mcp_servers"),
        ({"foo": 1}, "foo"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking"),
    ],
)
def test_errors_have_anthropics_format(post: Post, body: dict[str, Any], words: str) -> None:
    response = post("Yes", **body)
    error = response.json()
    assert response.status_code == 400
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert words in error["error"]["message"]


def test_errors_of_other_layers_too(post: Post, chats: dict[str, Chat], tmp_path: Path) -> None:
    assert post("Yes", model="gpt").json()["error"]["type"] == "not_found_error"
    (tmp_path / "keys").write_text(json.dumps({"name": "anna", "sha256": digest("right")}))
    chat = chats["hermes"]
    engine = BatchingEngine(ListModel(say(chat, "x")), max_input_len=60, max_queue=4)
    stack = MiddlewareStack(keyring=Keyring(tmp_path / "keys"))
    app = create_app(engine, chat, model="bank", slots=4, middleware=stack)
    refused = ask(app, "POST", "/v1/messages", json={}, headers={"x-api-key": "wrong"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    assert ask(app, "POST", "/v1/completions").json()["error"]["code"] == "invalid_api_key"
    engine.close()
