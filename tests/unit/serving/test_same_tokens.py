"""What the engine is asked to go on with is what training showed it: the same ids, BOS included."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.paths import ROOT
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from tests.unit.model_folders import TEMPLATES, make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, mix

BUNDLED = "bundled"
CONVERSATIONS = [
    [{"role": "user", "content": "What does a wire cost?"}],
    [
        {"role": "system", "content": "You are the assistant of a bank."},
        {"role": "user", "content": "  Hello\n"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Grüße, 5 € 🌍"},
    ],
]
ANSWER = {"role": "assistant", "content": "18 dollars."}


class Asked(BatchingEngine):
    """Keeps the prompts."""

    def generate(self, prompt: Any, sampling: Any) -> Any:
        self.prompt = list(prompt)
        return super().generate(prompt, sampling)


@pytest.fixture(params=[BUNDLED, *TEMPLATES], scope="module")
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    if request.param == BUNDLED:
        return Chat.load(ROOT / "data/base_model")
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("same"), request.param))


@pytest.fixture
def engine(chat: Chat) -> Iterator[Asked]:
    model = ListModel(mix, vocab_size=2048, max_seq_len=300)
    engine = Asked(model, max_input_len=250, max_queue=4)
    yield engine
    engine.close()


@pytest.fixture
def app(engine: Asked, chat: Chat) -> Any:
    return create_app(engine, chat, model="bank", slots=4)


def prompt_of(app: Any, engine: Asked, path: str, **body: Any) -> list[int]:
    response = ask(app, "POST", f"/v1/{path}", json={"model": "bank", "max_tokens": 1, **body})
    assert response.status_code == 200, response.text
    return engine.prompt


def bos_count(chat: Chat) -> Any:
    """How often BOS stands in ids; a model without one has none."""
    bos = chat.special_tokens.get("bos_token")
    token = chat.tokenizer.token_to_id(bos) if bos else None
    return lambda ids: ids.count(token)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_chat_request_is_the_beginning_of_a_training_row(
    app: Any, engine: Asked, chat: Chat, messages: list[dict[str, str]]
) -> None:
    ids = prompt_of(app, engine, "chat/completions", messages=messages)
    row = chat.render([*messages, ANSWER])
    assert row.ids[: len(ids)] == ids
    assert not any(row.mask[len(chat.prompt(messages)) - 1 : len(ids)])
    assert row.mask[len(ids)] == 1
    writes_bos = "bos_token" in chat.template.source
    assert bos_count(chat)(ids) == int(writes_bos)
    assert bos_count(chat)(row.ids) == int(writes_bos)
    if writes_bos:
        assert ids[0] == chat.tokenizer.token_to_id(chat.special_tokens["bos_token"])


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_client_that_renders_by_itself_gives_the_same_prompt(
    app: Any, engine: Asked, chat: Chat, messages: list[dict[str, str]]
) -> None:
    ids = chat.prompt(messages)
    text = chat.text(messages, generation_prompt=True)
    assert prompt_of(app, engine, "completions", prompt=ids) == ids
    assert prompt_of(app, engine, "completions", prompt=text) == ids


def test_plain_text_begins_as_conversations_do(app: Any, engine: Asked, chat: Chat) -> None:
    ids = prompt_of(app, engine, "completions", prompt="What does a wire cost?")
    assert bos_count(chat)(ids) == bos_count(chat)(chat.prompt(CONVERSATIONS[0]))
    again = prompt_of(app, engine, "completions", prompt=chat.decode(ids, control_tokens=True))
    assert again == ids


ATTACKS = [
    "''.__class__.__mro__[1].__subclasses__()",
    "cycler.__init__.__globals__.os.system('touch ' + messages[0].content)",
    "messages.append({'role': 'system', 'content': 'x'})",
    "self._TemplateReference__context.environment.from_string('x')",
    "range(10**9) | list | length",
    "'x' * 10**10",
    "10**10 * [0]",
    "9 ** 99999999",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_that_tries_to_run_code_is_refused(tmp_path: Path, attack: str) -> None:
    trap = tmp_path / "trap"
    template = TEMPLATES["demo"] + "{% if messages[0].content == '" + str(trap) + "' %}{{ "
    chat = Chat.load(make_model_folder(tmp_path, "demo", template + attack + " }}{% endif %}"))
    engine = Asked(ListModel(mix), max_input_len=60, max_queue=4)
    app = create_app(engine, chat, model="bank", slots=4)
    try:
        body = {"model": "bank", "messages": [{"role": "user", "content": str(trap)}]}
        response = ask(app, "POST", "/v1/chat/completions", json=body)
    finally:
        engine.close()
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages"
    assert "refused by the template" in error["message"]
    assert not trap.exists()
