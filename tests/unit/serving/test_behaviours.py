"""Every case of the table in docs/api.md, asked for; and the table is written from these cases."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.behaviours.case import ANSWER, HELLO, Case, Reply
from tests.unit.serving.behaviours.cases import CASES
from tests.unit.serving.behaviours.table import PAGE, with_table
from tests.unit.serving.fake_models import ListModel, say
from tests.unit.serving.tool_templates import HERMES, tool_chat

# What the model of a server says, if it is not ANSWER.
SAID = {
    "calling": 'I will look.\n<tool_call>\n{"name":"weather","arguments":{"town":"Rome"}}'
    "\n</tool_call>",
    "thought": "<think>\nHm.\n</think>\n\nIt costs 5.",
}
THINKING = HERMES.replace(
    "{%- if add_generation_prompt %}",
    "{%- for document in documents or [] %}{{- document.text }}{%- endfor %}"
    "{%- if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{%- elif add_generation_prompt %}",
)


def thinking_chat(folder: Path) -> Chat:
    """A model that may think before it answers."""
    return Chat.load(make_model_folder(folder, "chatml", THINKING))


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A server of each kind that cases name. Its model gives the same answer to everything."""
    folder = tmp_path_factory.mktemp("behaviours")
    chats = {
        "plain": Chat.load(make_model_folder(folder / "plain", "demo")),
        "hermes": tool_chat(folder / "hermes", "hermes"),
        "thinking": thinking_chat(folder / "thinking"),
    }
    chats |= {"calling": chats["hermes"], "thought": chats["thinking"]}
    made, engines = {}, []
    for name, chat in chats.items():
        length, longest = (160, 60) if name == "plain" else (900, 700)
        model = ListModel(
            say(chat, SAID.get(name, ANSWER)), vocab_size=chat.vocab_size, max_seq_len=length
        )
        engine = BatchingEngine(model, max_input_len=longest, max_queue=4, guides=Guides(chat))
        made[name] = create_app(engine, chat, model="bank", slots=4, defaults={"temperature": 0})
        engines.append(engine)
    yield made
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES])
def test_a_behaviour(apps: dict[str, Any], case: Case) -> None:
    given: dict[str, Any] = {}
    if case.body is not None:
        body = {"model": "bank", **case.body}
        if "completions" in case.path and "prompt" not in body:
            body = {"messages": HELLO, **body}
        if case.path.endswith("count_tokens"):
            body.pop("max_tokens", None)
        if body["model"] is None:
            del body["model"]
        given["content"] = json.dumps(body).encode()
    headers = {"content-type": "application/json", **case.headers}
    reply = Reply(ask(apps[case.app], case.method, case.path, headers=headers, **given))
    assert case.check(reply), f"{reply.status}: {reply.response.text[:600]}"


def test_a_difference_has_a_reason_and_no_name_comes_twice() -> None:
    names = [name for name, _ in CASES]
    assert len(names) == len(set(names))
    assert [name for name, case in CASES if case.alike == bool(case.why)] == []


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text()
    assert page == with_table(page), "run python -m tests.unit.serving.behaviours.table"
