"""The Responses API, asked with OpenAI's own client."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.responses.conversation import messages_of
from pipeline.serving.responses.store import ResponseStore
from tests.unit.serving.fake_models import ListModel, say
from tests.unit.serving.test_behaviours import thinking_chat
from tests.unit.serving.tool_templates import tool_chat

CALL = 'I will look.\n<tool_call>\n{"name":"weather","arguments":{"town":"Rome"}}\n</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\nIt costs 5."
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string"}},
        "required": ["town"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    folder = tmp_path_factory.mktemp("responses")
    return {
        "hermes": tool_chat(folder / "hermes", "hermes"),
        "thinking": thinking_chat(folder / "thinking"),
    }


Ask = Callable[..., Any]


@pytest.fixture
def ask(chats: dict[str, Chat]) -> Iterator[Ask]:
    """Calls work(client) with a client of a server whose model says one thing."""
    engines = []

    def ask(said: str, work: Callable[[AsyncOpenAI], Awaitable[Any]], kind: str = "hermes") -> Any:
        chat = chats[kind]
        model = ListModel(say(chat, said), vocab_size=chat.vocab_size, max_seq_len=900)
        engine = BatchingEngine(model, max_input_len=800, max_queue=9, guides=Guides(chat))
        engines.append(engine)
        app = create_app(
            engine, chat, model="bank", slots=4, defaults={"temperature": 0}, response_store=2
        )

        async def run() -> Any:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            http = httpx.AsyncClient(transport=transport)
            async with AsyncOpenAI(
                base_url="http://server/v1", api_key="none", http_client=http, max_retries=0
            ) as client:
                return await work(client)

        return asyncio.run(run())

    yield ask
    for engine in engines:
        engine.close()


def test_a_response(ask: Ask) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        return await client.responses.create(model="bank", input="Hello", instructions="Be short.")

    response = ask("It costs 5.", work)
    assert response.output_text == "It costs 5."
    assert (response.status, response.instructions) == ("completed", "Be short.")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_a_stream_has_the_same_response(ask: Ask) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        whole = await client.responses.create(model="bank", input="Hello", tools=[WEATHER])
        async with client.responses.stream(model="bank", input="Hello", tools=[WEATHER]) as stream:
            events = [event async for event in stream]
            return whole, events, await stream.get_final_response()

    whole, events, last = ask(CALL, work)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for response in (whole, last):
        assert len(response.output) == 2, response.output
        message, call = response.output
        assert message.content[0].text == "I will look."
        assert (call.name, json.loads(call.arguments)) == ("weather", {"town": "Rome"})
        assert (message.status, call.status) == ("completed", "completed")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        "I will look."
    )
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(pieces)) == {"town": "Rome"}


class Fee(BaseModel):
    currency: Literal["USD", "EUR"]


def test_parse_gives_an_object(ask: Ask) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        return await client.responses.parse(model="bank", input="Hello", text_format=Fee)

    assert ask("?", work).output_parsed.currency in ("USD", "EUR")


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_items_of_their_own(ask: Ask, stream: bool) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        if not stream:
            return await client.responses.create(model="bank", input="Hello")
        async with client.responses.stream(model="bank", input="Hello") as events:
            async for _ in events:
                pass
            return await events.get_final_response()

    response = ask(THOUGHT, work, "thinking")
    thought, message = response.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "Hm.")
    assert message.content[0].text == "It costs 5."
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_a_request_goes_on_with_an_earlier_response(ask: Ask) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        first = await client.responses.create(model="bank", input="Hello", tools=[WEATHER])
        call = first.output[1]
        again: Any = await client.responses.create(
            model="bank",
            previous_response_id=first.id,
            tools=[WEATHER],
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
        )
        found = await client.responses.retrieve(first.id)
        items = await client.responses.input_items.list(first.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        unkept = await client.responses.create(model="bank", input="Hello", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(unkept.id)
        return first, again, found, items

    first, again, found, items = ask(CALL, work)
    assert again.usage.input_tokens > first.usage.input_tokens
    assert again.previous_response_id == first.id
    assert (found.id, found.store) == (first.id, True)
    assert items.data[0].content == "Hello"


def test_tokens_of_the_input_are_counted(ask: Ask) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        counted = await client.responses.input_tokens.count(model="bank", input="Hello")
        response: Any = await client.responses.create(model="bank", input="Hello")
        return counted.input_tokens, response.usage.input_tokens

    counted, used = ask("Yes", work)
    assert counted == used


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"background": True}, "background", "does not support background"),
        ({"input": []}, "input", "Missing required parameter"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input", "of the type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "not text"),
        ({"input": [{"role": "clerk", "content": "x"}]}, "input", "unknown role"),
        ({"tools": [{"type": "web_search"}]}, "tools", ""),
        ({"max_output_tokens": 10**6}, "input", "maximum context length"),
        ({"extra_body": {"stop": ["x"] * 40}}, "stop", "at most 32"),
        ({"include": ["file_search_call.results"]}, "include", "have no"),
        ({"previous_response_id": "resp_x"}, "response_id", "not found"),
        ({"text": {"format": {"type": "xml"}}}, "text", ""),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ],
)
def test_what_is_not_valid_is_refused_by_its_own_name(
    ask: Ask, fields: dict[str, Any], param: str, words: str
) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.responses.create(**{"model": "bank", "input": "Hello", **fields})
        return refused.value

    error = ask("Yes", work)
    assert error.status_code in (400, 404)
    assert error.body["param"] == param
    assert words in error.body["message"]


def test_an_answer_that_is_cut_is_incomplete(ask: Ask) -> None:
    async def work(client: AsyncOpenAI) -> Any:
        return await client.responses.create(model="bank", input="Hello", max_output_tokens=2)

    response = ask("It costs 5.", work)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"


def test_items_of_one_answer_are_one_message() -> None:
    items: list[Any] = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "c"},
        {"role": "assistant", "content": "d"},
    ]
    user, answer, result, last = messages_of(items)
    assert user["content"] == "a"
    assert answer["reasoning_content"] == "hm"
    assert [call["id"] for call in answer["tool_calls"]] == ["1", "2"]
    assert result["tool_call_id"] == "1"
    assert last == {"role": "assistant", "content": "d"}


def test_the_store_is_bounded_and_private() -> None:
    store = ResponseStore(2)
    for name in "abc":
        store.put("anna", {"id": name}, [], [])
    assert store.get("anna", "a") is None
    assert store.get("ben", "b") is None
    assert store.get("anna", "c")
    assert not store.delete("ben", "c")
    assert store.delete("anna", "c")
    nothing = ResponseStore(0)
    nothing.put("anna", {"id": "a"}, [], [])
    assert nothing.get("anna", "a") is None
