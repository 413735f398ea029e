"""Log-probabilities in OpenAI's formats."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say

ANSWER = "It costs 5 €."
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("logprobs"), "demo"))


@pytest.fixture
def app(chat: Chat) -> Iterator[Any]:
    model = ListModel(say(chat, ANSWER), vocab_size=chat.vocab_size, max_seq_len=96)
    engine = BatchingEngine(model, max_input_len=60, max_queue=4)
    yield create_app(engine, chat, model="bank", slots=4, defaults={"temperature": 0})
    engine.close()


def post(app: Any, path: str, **body: Any) -> Any:
    response = ask(app, "POST", f"/v1/{path}", json={"model": "bank", **body})
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    return [json.loads(line[6:]) for line in response.text.split("\n\n") if line[6:7] == "{"]


def sure(chat: Chat) -> float:
    """What the model gives to the token that it chooses."""
    return 10 - math.log(math.exp(10) + chat.vocab_size - 1)


def test_of_a_chat(app: Any, chat: Chat) -> None:
    from openai.types.chat import ChatCompletion

    body = post(app, "chat/completions", messages=HELLO, logprobs=True, top_logprobs=2)
    logprobs = ChatCompletion.model_validate(body, strict=True).choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    assert b"".join(bytes(entry.bytes or []) for entry in content).decode() == ANSWER
    assert [entry.logprob for entry in content] == pytest.approx([sure(chat)] * len(content))
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(entry.top_logprobs[0].token == entry.token for entry in content)
    euro = [entry for entry in content if (entry.bytes or [0])[0] == 0xE2]
    assert euro[0].token == "bytes:\\xe2"
    plain = post(app, "chat/completions", messages=HELLO, logprobs=True)["choices"][0]
    assert plain["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_stream_has_the_same(app: Any) -> None:
    how = {"messages": HELLO, "logprobs": True, "top_logprobs": 1}
    whole = post(app, "chat/completions", **how)["choices"][0]
    events = post(app, "chat/completions", stream=True, **how)
    parts = [event["choices"][0] for event in events]
    found = [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]]
    assert found == whole["logprobs"]["content"]
    assert "".join(part["delta"].get("content", "") for part in parts) == ANSWER


def test_of_a_completion_and_its_prompt(app: Any, chat: Chat) -> None:
    from openai.types import Completion

    prompt = chat.prompt(HELLO)
    echoed = post(app, "completions", prompt=prompt, max_tokens=60, echo=True, logprobs=1)
    found = echoed["choices"][0]["logprobs"]
    tokens, chances, num_logprobs = found["tokens"], found["token_logprobs"], found["top_logprobs"]
    count = len(prompt)
    written = [chat.decode([token], control_tokens=True) for token in prompt]
    assert tokens[:count] == written
    assert tokens[-1] == "<|end|>"
    assert chances[0] is None
    assert num_logprobs[0] is None
    assert chances[count:] == pytest.approx([sure(chat)] * len(tokens[count:]))
    # The prompt is not what the model would have said: the likeliest token is another.
    assert chances[1] == pytest.approx(sure(chat) - 10)
    for token, chosen, top in zip(tokens[1:], chances[1:], num_logprobs[1:], strict=True):
        assert top[token] == chosen
        assert max(top.values()) == pytest.approx(sure(chat))
        assert len(top) == (1 if chosen == pytest.approx(sure(chat)) else 2)
    assert found["text_offset"][:3] == [0, 0, 0], "control tokens are not in the text"
    answer = post(app, "completions", prompt=prompt, max_tokens=60, logprobs=1)
    alone = Completion.model_validate(answer, strict=True).choices[0].logprobs
    assert alone is not None
    assert alone.tokens == tokens[count:]
    assert (alone.text_offset or [])[0] == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Café ünïcödé 日本e <|assistant|>\n", "ids"])
def test_offsets_are_characters_of_the_text(
    app: Any, chat: Chat, prompt: Any, stream: bool
) -> None:
    """Whether the prompt's control tokens are in it (as text) or not (as ids, or an added BOS)."""
    prompt = chat.prompt(HELLO) if prompt == "ids" else prompt
    for echo in (True, False):
        how = {"prompt": prompt, "max_tokens": 40, "echo": echo, "logprobs": 0, "stream": stream}
        bodies = post(app, "completions", **how)
        parts = [body["choices"][0] for body in (bodies if stream else [bodies])]
        text = "".join(part["text"] for part in parts)
        found = [part["logprobs"] for part in parts if part["logprobs"]]
        tokens = [token for part in found for token in part["tokens"]]
        offsets = [at for part in found for at in part["text_offset"]]
        assert offsets == sorted(offsets)
        assert offsets[0] == 0
        assert offsets[-1] == len(text), "the token that ends the answer is not in the text"
        for token, at in zip(tokens, offsets, strict=True):
            assert token.startswith(("bytes:", "<|")) or text.startswith(token, at)
        assert text[offsets[tokens.index("bytes:\\xe2")]] == "€"


@pytest.mark.parametrize("stream", [False, True])
def test_only_the_prompts(app: Any, chat: Chat, stream: bool) -> None:
    prompts = [chat.prompt(HELLO), [7, 8, 9]]
    how = {"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 0, "stream": stream}
    bodies = post(app, "completions", **how)
    choices = [c for body in (bodies if stream else [bodies]) for c in body["choices"]]
    if not stream:
        assert bodies["usage"]["completion_tokens"] == 0
    for index, prompt in enumerate(prompts):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in mine) == chat.decode(prompt)
        tokens = [t for c in mine for t in (c["logprobs"] or {"tokens": []})["tokens"]]
        assert len(tokens) == len(prompt)
        assert mine[-1]["finish_reason"] == "length"
