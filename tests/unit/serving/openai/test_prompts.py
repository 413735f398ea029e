"""Prompts as token ids: the same as in training, without blocking other requests."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.errors import ApiError
from pipeline.serving.openai.prompts import LONG_BYTES, PromptRenderer
from tests.unit.model_folders import make_model_folder

LONG: Any = SimpleNamespace(max_input_len=10**7)  # an engine
QUESTION = "Grüße! What does a wire cost, 5 € or 18 €? 🌍 "


@pytest.fixture(scope="module", params=["demo", "llama3", "mistral", "gemma"])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("prompts"), request.param))


@pytest.mark.parametrize("size", [0, LONG_BYTES + 1])
def test_a_conversations_tokens_are_those_of_training(chat: Chat, size: int) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    asked = PromptRenderer(chat, LONG).chat(messages, None, size)
    assert asyncio.run(asked) == chat.prompt(messages)
    ids = asyncio.run(PromptRenderer(chat, LONG).completions([QUESTION], size))[0]
    plain = chat.tokenizer.encode(QUESTION, add_special_tokens=False).ids
    assert ids[-len(plain) :] == plain


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_long_text_does_not_block_the_event_loop(chat: Chat, kind: str) -> None:
    text = QUESTION * 20_000
    prompts, longest = PromptRenderer(chat, LONG), 0.0

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
        asyncio.run(PromptRenderer(chat, LONG).completions([half], size))
    with pytest.raises(ApiError, match="half a surrogate pair"):
        asyncio.run(
            PromptRenderer(chat, LONG).chat([{"role": "user", "content": half}], None, size)
        )
    with pytest.raises(ApiError, match="token ids must be from 0 to"):
        asyncio.run(PromptRenderer(chat, LONG).completions([[-1]], size))


def test_tools_that_are_nested_too_deep_are_refused(chat: Chat) -> None:
    parameters: list[Any] = []
    for _ in range(2000):
        parameters = [parameters]
    messages = [{"role": "user", "content": QUESTION}]
    with pytest.raises(ApiError, match="nested too deeply"):
        asyncio.run(PromptRenderer(chat, LONG).chat(messages, [{"parameters": parameters}], 0))


def test_a_text_that_cannot_fit_is_not_tokenized(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = SimpleNamespace(max_input_len=16)
    prompts = PromptRenderer(chat, engine)
    text = "wire" * 500_000
    monkeypatch.setattr(Chat, "encode", None)
    monkeypatch.setattr(Chat, "text", lambda *_, **__: text)
    for asked in (
        prompts.completions([text], len(text)),
        prompts.chat([{"role": "user", "content": text}], None, len(text)),
        prompts.chat([{"role": "user", "content": "short, and rendered long"}], None, 0),
        prompts.chat([{"role": "user", "content": ""}] * 1025, None, 0),
    ):
        with pytest.raises(ApiError, match=r"cannot fit|1025 messages") as refused:
            asyncio.run(asked)
        assert refused.value.body["error"]["code"] == "context_length_exceeded"
