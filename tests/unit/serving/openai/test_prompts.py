"""What is asked, as token ids: the same as in training, and made without holding up the others."""

import asyncio
import time
from typing import Any

import pytest

from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.prompts import LONG_BYTES, Prompts
from pipeline.serving.openai.protocol import Refusal
from tests.unit.model_folders import make_model_folder

QUESTION = "Grüße! What does a wire cost, 5 € or 18 €? 🌍 "


@pytest.fixture(scope="module", params=["demo", "llama3", "mistral", "gemma"])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("prompts"), request.param))


@pytest.mark.parametrize("size", [0, LONG_BYTES + 1])
def test_a_conversations_tokens_are_those_of_training(chat: Chat, size: int) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    asked = Prompts(chat).of_chat(messages, None, size)
    assert asyncio.run(asked) == chat.prompt(messages)
    ids = asyncio.run(Prompts(chat).of_texts([QUESTION], size))[0]
    plain = chat.tokenizer.encode(QUESTION, add_special_tokens=False).ids
    assert ids[-len(plain) :] == plain


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_long_text_holds_up_nobody_else(chat: Chat, kind: str) -> None:
    text = QUESTION * 20_000
    prompts, longest = Prompts(chat), 0.0

    async def scenario() -> None:
        nonlocal longest
        conversation = [{"role": "user", "content": text}]
        making = asyncio.create_task(
            prompts.of_chat(conversation, None, len(text))
            if kind == "chat"
            else prompts.of_texts([text], len(text))
        )
        while not making.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)
        assert len((await making)[0] if kind == "text" else await making) > 20_000

    begin = time.perf_counter()
    asyncio.run(scenario())
    assert longest < 0.5 * (time.perf_counter() - begin)


@pytest.mark.parametrize("size", [0, LONG_BYTES + 1])
def test_what_is_no_text_is_refused(chat: Chat, size: int) -> None:
    half = "\ud83d"
    with pytest.raises(Refusal, match="half a surrogate pair"):
        asyncio.run(Prompts(chat).of_texts([half], size))
    with pytest.raises(Refusal, match="half a surrogate pair"):
        asyncio.run(Prompts(chat).of_chat([{"role": "user", "content": half}], None, size))
    with pytest.raises(Refusal, match="token ids go from 0 to"):
        asyncio.run(Prompts(chat).of_texts([[-1]], size))


def test_tools_that_are_nested_too_deep_are_refused(chat: Chat) -> None:
    parameters: list[Any] = []
    for _ in range(2000):
        parameters = [parameters]
    messages = [{"role": "user", "content": QUESTION}]
    with pytest.raises(Refusal, match="nested hundreds deep"):
        asyncio.run(Prompts(chat).of_chat(messages, [{"parameters": parameters}], 0))
