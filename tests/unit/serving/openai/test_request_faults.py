"""A fault in turning one answer into text ends that answer, and the others go on."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.openai.choices import ChatFormatter
from pipeline.serving.openai.detokenizer import Detokenizer
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel, say
from tests.unit.serving.test_app import ANSWER, HELLO, client_of


class Panic(BaseException):
    """As native libraries raise it: not an Exception."""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("faults"), "demo"))


@pytest.fixture
def app(chat: Chat) -> Iterator[Any]:
    engine = BatchingEngine(
        ListModel(say(chat, ANSWER), max_seq_len=96), max_input_len=60, max_queue=9
    )
    yield create_app(engine, chat, model="bank", slots=4, defaults={"temperature": 0})
    engine.close()


async def post(client: Any, **fields: Any) -> Any:
    body = {"model": "bank", "messages": HELLO, **fields}
    return await client.post("/v1/chat/completions", json=body)


def ask_with_a_fault(app: Any, **fields: Any) -> Any:
    """The response to a request with two stop strings, where the fault is, beside others."""

    async def run() -> Any:
        async with client_of(app) as client:
            odd, *others = await asyncio.gather(
                post(client, stop=["never", "nowhere"], **fields),
                *(post(client, stream=stream) for stream in (False, True, False)),
            )
            assert others[0].json()["choices"][0]["message"]["content"] == ANSWER
            assert others[1].text.endswith("data: [DONE]\n\n")
            assert others[2].json()["choices"] == others[0].json()["choices"]
            idle = re.compile(r"num_requests_running\S* 0\.0")
            while not idle.search((await client.get("/metrics")).text):
                await asyncio.sleep(0.01)  # its slot is free at the next token
            return odd

    return asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["__init__", "push", "finish"])
@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_of_the_tokenizer(
    app: Any, monkeypatch: pytest.MonkeyPatch, method: str, stream: bool, n: int, kind: Any
) -> None:
    work = getattr(Detokenizer, method)

    def failing(self: Detokenizer, *given: Any, **named: Any) -> Any:
        result = work(self, *given, **named)
        if len(self._stops) == 2:
            raise kind("no text")
        return result

    monkeypatch.setattr(Detokenizer, method, failing)
    odd = ask_with_a_fault(app, stream=stream, n=n)
    error = json.loads(odd.text.split("data: ")[-1])["error"] if stream else odd.json()["error"]
    assert error["type"] == "server_error"
    assert "the answer cannot be turned into text" in error["message"]
    assert odd.status_code == (200 if stream else 500)


@pytest.mark.parametrize("stream", [False, True])
def test_of_the_response(app: Any, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    name = "chunks" if stream else "complete"
    write = getattr(ChatFormatter, name)

    def failing(self: ChatFormatter, delta: Any) -> Any:
        if len(self._parsers) == 2:
            raise KeyError("no such call")
        return write(self, delta)

    monkeypatch.setattr(ChatFormatter, name, failing)
    odd = ask_with_a_fault(app, stream=stream, n=2)
    if stream:
        error = json.loads(odd.text.split("data: ")[-1])["error"]
        assert error["type"] == "server_error"
        assert "internal server error" in error["message"]
    else:
        assert odd.status_code == 500


def test_a_token_that_only_the_tokenizer_has_is_refused(chat: Chat) -> None:
    """As one that only tokenizer_config.json declares."""
    rows = chat.vocab_size - 20
    text = chat.decode([rows + 5])
    model = ListModel(say(chat, "Yes"), max_seq_len=96, vocab_size=rows)
    engine = BatchingEngine(model, max_input_len=60, max_queue=9)
    app = create_app(engine, chat, model="bank", slots=4)

    async def run() -> None:
        async with client_of(app) as client:
            for stream in (False, True):
                messages = [{"role": "user", "content": text}]
                refused = await post(client, messages=messages, stream=stream)
                assert refused.status_code == 400
                error = refused.json()["error"]
                assert error["param"] == "messages"
                assert f"the model's vocabulary ends at {rows - 1}" in error["message"]
            body = {"model": "bank", "prompt": [rows]}
            refused = await client.post("/v1/completions", json=body)
            assert refused.status_code == 400
            assert f"token ids must be from 0 to {rows - 1}" in refused.json()["error"]["message"]

    try:
        if rows + 5 in chat.encode(text):  # else the text has other tokens, too
            asyncio.run(run())
        else:
            pytest.fail("the token is not what its text becomes: choose another")
    finally:
        engine.close()
