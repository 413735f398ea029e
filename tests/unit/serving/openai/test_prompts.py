"""Prompts as token ids: the same as in training, without blocking other requests."""

import asyncio
import time
from typing import Any

import pytest

from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.prompts import LONG_BYTES, PromptRenderer
from pipeline.serving.openai.protocol import ApiError
from tests.unit.model_folders import make_model_folder

QUESTION = "Grüße! What does a wire cost, 5 € or 18 €? 🌍 "


@pytest.fixture(scope="module", params=["demo", "llama3", "mistral", "gemma"])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("prompts"), request.param))


@pytest.mark.parametrize("size", [0, LONG_BYTES + 1])
def test_a_conversations_tokens_are_those_of_training(chat: Chat, size: int) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    asked = PromptRenderer(chat).chat(messages, None, size)
    assert asyncio.run(asked) == chat.prompt(messages)
    ids = asyncio.run(PromptRenderer(chat).completions([QUESTION], size))[0]
    plain = chat.tokenizer.encode(QUESTION, add_special_tokens=False).ids
    assert ids[-len(plain) :] == plain


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_long_text_does_not_block_the_event_loop(chat: Chat, kind: str) -> None:
    text = QUESTION * 20_000
    prompts, longest = PromptRenderer(chat), 0.0

    async def scenario() -> None:
        nonlocal longest
        conversation = [{"role": "user", "content": text}]
        making = asyncio.create_task(
            prompts.chat(conversation, None, len(text))
            if kind == "chat"
            else prompts.completions([text], len(text))
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
def test_invalid_prompts_are_refused(chat: Chat, size: int) -> None:
    half = "\ud83d"
    with pytest.raises(ApiError, match="half a surrogate pair"):
        asyncio.run(PromptRenderer(chat).completions([half], size))
    with pytest.raises(ApiError, match="half a surrogate pair"):
        asyncio.run(PromptRenderer(chat).chat([{"role": "user", "content": half}], None, size))
    with pytest.raises(ApiError, match="token ids must be from 0 to"):
        asyncio.run(PromptRenderer(chat).completions([[-1]], size))


def test_tools_that_are_nested_too_deep_are_refused(chat: Chat) -> None:
    parameters: list[Any] = []
    for _ in range(2000):
        parameters = [parameters]
    messages = [{"role": "user", "content": QUESTION}]
    with pytest.raises(ApiError, match="nested too deeply"):
        asyncio.run(PromptRenderer(chat).chat(messages, [{"parameters": parameters}], 0))
