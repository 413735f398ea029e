"""The server with NeMo Guardrails before and behind a model that is a function."""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("nemoguardrails", reason="make setup EXTRA=guardrails")

from pipeline.config.retrieval import RagConfig
from pipeline.config.serve import ServeConfig
from pipeline.core.errors import ConfigError
from pipeline.core.paths import ROOT
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.retrieval.search import Search
from pipeline.retrieval.stores.opening import open_store
from pipeline.serving.app import create_app
from pipeline.serving.guardrails.configuration import find, open_configuration
from pipeline.serving.guardrails.guard import Guardrails
from pipeline.serving.guardrails.model import EngineModel
from pipeline.serving.keyring import Keyring, digest
from pipeline.serving.middleware.recording import Recorder
from pipeline.serving.middleware.stack import MiddlewareStack
from pipeline.serving.rag.collections import Collections
from tests.unit.model_folders import make_model_folder
from tests.unit.retrieval.indexes import WordEmbedder, index_config, make_index, write_documents
from tests.unit.serving.fake_models import ListModel, say

CARD = "4111 1111 1111 1111"
READY = ROOT / "conf" / "guardrails"

# Rails of every kind, and a dialog: the flows that a user of NVIDIA's library would write.
CONFIG = """
models:
  - type: main
    engine: openai
    model: not-used
rails:
  config:
    regex_detection:
      input: {patterns: ['\\bswordfish\\b']}
      output: {patterns: ['\\bswordfish\\b']}
      retrieval: {patterns: ['\\bswordfish\\b']}
  input: {flows: [regex check input, mask name, two steps, breaks]}
  retrieval: {flows: [regex check retrieval]}
  tool_input: {flows: [check result]}
  tool_output: {flows: [check call]}
  output:
    flows: [regex check output]
  dialog:
    user_messages: {embeddings_only: true, embeddings_only_similarity_threshold: 0.6,
      embeddings_only_fallback_intent: ask other}
"""
FLOWS = """
define bot refuse tool
  "The tool said something odd."

define flow mask name
  $result = execute mask_name(text=$user_message)
  if $result.is_transform
    $user_message = $result.transform_text["user_message"]

define flow two steps
  $first = execute find_word(text=$user_message, word="alpha")
  $second = execute find_word(text=$user_message, word="beta")
  if $first and $second
    bot refuse both
    stop

define bot refuse both
  "Not both."

define flow breaks
  $result = execute break_on(text=$user_message)
  if $result.is_blocked
    bot refuse both
    stop

define flow check result
  $result = execute check_tool(text=$tool_message)
  if $result.is_blocked
    bot refuse tool
    stop

define flow check call
  $result = execute check_tool(text=$tool_calls)
  if $result.is_blocked
    bot refuse tool
    stop

define user ask weather
  "what is the weather like"
  "will it rain tomorrow"

define bot refuse weather
  "I only know the bank."

define flow weather
  user ask weather
  $place = execute find_place
  bot refuse weather

define flow other
  user ask other
  bot answer
"""
ACTIONS = """
import asyncio
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget

@action()
async def mask_name(text):
    if "Ada" in text:
        return RailOutcome.transform([(TransformTarget.USER_MESSAGE, text.replace("Ada", "X"))])
    return RailOutcome.allow()

@action()
async def find_word(text, word):
    return word in text

@action()
async def break_on(text):
    if "break" in text:
        raise ValueError("secret " + text)
    if "sleep" in text:
        await asyncio.sleep(60)
    return RailOutcome.allow()

@action()
async def check_tool(text):
    return RailOutcome.block() if "evil" in str(text) else RailOutcome.allow()

@action()
async def find_place():
    return "here"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configurations: `every`, with rails of every kind, and the ready `leaks`."""
    root = tmp_path_factory.mktemp("rails")
    (root / "every").mkdir()
    (root / "every" / "config.yml").write_text(CONFIG)
    (root / "every" / "rails.co").write_text(FLOWS)
    (root / "every" / "actions.py").write_text(ACTIONS)
    shutil.copytree(READY / "leaks", root / "leaks", ignore=shutil.ignore_patterns("__pycache__"))
    return root


DEFAULTS = compose([])["serve"]


def settings(folder: Path, **more: Any) -> ServeConfig:
    given = {"guardrails": folder, "guardrails_timeout": 2, **more}
    return ServeConfig.model_validate({**DEFAULTS, **given})


@pytest.fixture(scope="module")
def opened(folder: Path) -> Guardrails:
    found = Guardrails.from_config(
        settings(folder, guardrails_by_model={"bank": ["leaks"]}), "bank"
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("app"), "demo"))


class Server:
    """The application; `answer` is what its model says next."""

    def __init__(
        self,
        chat: Chat,
        guardrails: Guardrails | None,
        collections: Collections | None = None,
        **stack: Any,
    ) -> None:
        self.chat = chat
        self.model = ListModel(lambda sequence: self.follow(sequence), max_seq_len=800)
        self.answer = "A wire costs 40 dollars."
        self.engine = BatchingEngine(self.model, max_input_len=300, max_queue=8)
        self.prompts: list[str] = []
        self.app = create_app(
            *(self.engine, chat),
            model="bank",
            slots=4,
            defaults={"temperature": 0},
            middleware=MiddlewareStack(**stack),
            guardrails=guardrails,
            collections=collections,
        )

    def follow(self, sequence: Any) -> int:
        token = say(self.chat, self.answer)(sequence)
        self.prompts.append(self.chat.decode(sequence))
        return token

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client

    def post(
        self,
        text: Any = "hello",
        path: str = "/v1/chat/completions",
        headers: Any = None,
        **body: Any,
    ) -> httpx.Response:
        messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
        prompt = {"messages": messages} if "chat" in path else {"prompt": text}
        given = {"model": "bank", **prompt, **body}

        async def send() -> httpx.Response:
            async with self.client() as client:
                return await client.post(path, json=given, headers=headers)

        return asyncio.run(send())

    def ask(self, text: Any, **body: Any) -> tuple[str, str]:
        """The answer's text, and its finish reason."""
        response = self.post(text, **body)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]


@pytest.fixture
def server(chat: Chat, opened: Guardrails) -> Iterator[Server]:
    found = Server(chat, opened)
    yield found
    found.engine.close()


EVERY = {"config_ids": ["every"]}


def test_a_harmless_request_passes(server: Server) -> None:
    body = server.post("what does a wire cost").json()
    assert body["choices"][0]["message"]["content"] == server.answer
    assert "guardrails" not in body
    assert body["usage"]["prompt_tokens"] > 0


def test_a_card_number_is_refused_and_never_reaches_the_model(server: Server) -> None:
    text, reason = server.ask(f"my card is {CARD}")
    assert "do not send card numbers" in text
    assert reason == "content_filter"
    assert server.prompts == []


def test_an_answer_with_a_card_number_is_withheld(server: Server) -> None:
    server.answer = f"it is {CARD}."
    text, reason = server.ask("what is my number?", logprobs=True, n=2)
    assert "4111" not in text
    assert "I can't show that" in text
    assert reason == "content_filter"


def test_what_fired_is_reported_without_the_text(server: Server) -> None:
    log = {"log": {"activated_rails": True, "llm_calls": True}}
    body = server.post(f"my card is {CARD}", guardrails={"options": log})
    assert "4111" not in body.text
    found = body.json()["guardrails"]
    assert found["config_ids"] == ["leaks"]
    (rail,) = found["log"]["activated_rails"]
    assert rail["type"] == "input"
    assert rail["name"] == "check private data in question"
    assert rail["stop"] is True
    assert rail["additional_info"]["reason"] == "a card number"
    assert found["log"]["llm_calls"] == []


def test_rails_of_a_request_come_beside_those_of_its_model(server: Server) -> None:
    assert server.ask("the swordfish")[1] == "stop"
    text, reason = server.ask("the swordfish", guardrails=EVERY)
    assert (text, reason) == ("I'm sorry, I can't respond to that.", "content_filter")
    assert server.ask(CARD, guardrails=EVERY)[1] == "content_filter"


def test_an_unknown_configuration_is_refused_by_name(server: Server) -> None:
    response = server.post(guardrails={"config_ids": ["none"]})
    assert response.status_code == 400
    assert "this server has every, leaks" in response.json()["error"]["message"]


def test_a_flow_of_any_form_runs(server: Server) -> None:
    assert server.ask("alpha and beta", guardrails=EVERY)[0] == "Not both."
    assert server.ask("alpha", guardrails=EVERY)[1] == "stop"


def test_a_rail_can_change_the_question(server: Server) -> None:
    server.ask("I am Ada", guardrails=EVERY)
    assert any("I am X" in prompt for prompt in server.prompts)
    assert not any("Ada" in prompt for prompt in server.prompts)


def test_a_dialog_answers_in_place_of_the_model(server: Server) -> None:
    assert server.ask("what is the weather like", guardrails=EVERY) == (
        "I only know the bank.",
        "stop",
    )
    assert server.prompts == []
    assert server.ask("what does a wire cost", guardrails=EVERY)[0] == server.answer


def test_results_and_calls_of_tools_are_checked(server: Server) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "look it up"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "an evil text"},
    ]
    text, _ = server.ask(messages, guardrails=EVERY)
    assert text == "The tool said something odd."


def test_retrieved_text_is_checked(server: Server) -> None:
    given = {**EVERY, "context": {"relevant_chunks": ["a", "the swordfish"]}}
    given["options"] = {"log": {"activated_rails": True}}
    body = server.post("what is it", guardrails=given).json()
    found = {
        rail["name"]: rail["decisions"] for rail in body["guardrails"]["log"]["activated_rails"]
    }
    assert found["regex check retrieval"] == ["changed"]


def test_an_earlier_turn_is_left_out_and_the_conversation_goes_on(server: Server) -> None:
    messages = [
        {"role": "user", "content": f"my card is {CARD}"},
        {"role": "assistant", "content": "Please do not send card numbers."},
        {"role": "user", "content": "what does a wire cost"},
    ]
    assert server.ask(messages) == (server.answer, "stop")
    assert "(removed)" in server.prompts[-1]
    assert not any("4111" in prompt for prompt in server.prompts)


@pytest.mark.parametrize("text", ["please break it", "please sleep now"])
def test_a_rail_that_fails_withholds_the_text(
    server: Server, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    said, reason = server.ask(text, guardrails=EVERY)
    assert "a safety check did not work" in said
    assert reason == "content_filter"
    assert "the guardrail every/breaks did not work, and the text is withheld" in caplog.text
    assert "secret" not in caplog.text
    assert server.prompts == []


def test_it_may_pass_the_text_instead(folder: Path, chat: Chat) -> None:
    given = settings(folder, guardrails_on_error="pass", guardrails_default=["every"])
    server = Server(chat, Guardrails.from_config(given, "bank"))
    assert server.ask("please break it") == (server.answer, "stop")
    server.engine.close()


def events_of(response: httpx.Response) -> list[Any]:
    data = [e.removeprefix("data: ") for e in response.text.split("\n\n") if e]
    assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


def text_of(events: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "") for event in events for choice in event["choices"]
    )


def test_a_stream_stays_a_stream(server: Server) -> None:
    server.answer = "A wire takes three days, and costs 40 dollars. " * 6
    response = server.post(
        "what does a wire cost", stream=True, stream_options={"include_usage": True}
    )
    events = events_of(response)
    assert text_of(events) == server.answer
    assert len(events) > 4
    assert events[-1]["usage"]["completion_tokens"] > 0


def test_a_stream_ends_where_a_rail_blocks(server: Server) -> None:
    server.answer = "Certainly. I have looked, and it says that your card has " + CARD + " on it."
    response = server.post("which number", stream=True, guardrails={})
    assert "4111" not in response.text
    events = events_of(response)
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert events[-1]["guardrails"]["config_ids"] == ["leaks"]
    deadline = time.monotonic() + 10
    while server.engine.load().running and time.monotonic() < deadline:
        time.sleep(0.01)  # the engine's thread sees the end after its step
    assert server.engine.load().running == 0


def test_a_request_that_is_refused_is_streamed_too(server: Server) -> None:
    events = events_of(server.post(CARD, stream=True))
    assert "do not send card numbers" in text_of(events)
    assert events[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_completions_have_the_same_rails(server: Server) -> None:
    choice = server.post(f"card {CARD}", "/v1/completions").json()["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    server.answer = f"it is {CARD}."
    choice = server.post("the number", "/v1/completions", max_tokens=40).json()["choices"][0]
    assert "4111" not in choice["text"]


def test_metrics_count_what_rails_decide(server: Server) -> None:
    server.ask(CARD)
    server.ask("hello")

    async def read() -> str:
        async with server.client() as client:
            return (await client.get("/metrics")).text

    text = asyncio.run(read())
    blocked = [line for line in text.splitlines() if 'decision="blocked"' in line]
    assert any('rail="check private data in question"' in line for line in blocked)
    assert "guardrails_request_seconds_count" in text


def test_neither_the_log_nor_a_recording_has_what_was_blocked(
    chat: Chat, opened: Guardrails, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.serving")
    recorder = Recorder(tmp_path)
    server = Server(chat, opened, recorder=recorder, log_content=True)
    server.post(f"my card is {CARD}", headers={"X-Record-Consent": "yes"})
    server.post("what does a wire cost", headers={"X-Record-Consent": "yes"})
    recorder.close()
    kept = "".join(file.read_text() for file in tmp_path.rglob("*.jsonl"))
    assert "what does a wire cost" in kept
    logged = [record for record in caplog.records if record.getMessage() == "request"]
    assert "4111" not in kept + str([vars(record) for record in logged])
    assert logged[0].guardrails == ["leaks/check private data in question: blocked"]  # type: ignore[attr-defined]
    server.engine.close()


def test_a_key_has_rails_of_its_own(chat: Chat, opened: Guardrails, tmp_path: Path) -> None:
    keys = tmp_path / "keys.jsonl"
    lines = [("free", []), ("strict", ["leaks", "every"]), ("gone", ["none"])]
    keys.write_text(
        "".join(
            json.dumps({"name": name, "sha256": digest(name), "guardrails": ids}) + "\n"
            for name, ids in lines
        )
    )
    server = Server(chat, opened, keyring=Keyring(keys))

    def reason(key: str, text: str) -> Any:
        response = server.post(text, headers={"Authorization": f"Bearer {key}"})
        if response.status_code != 200:
            return response.status_code
        return response.json()["choices"][0]["finish_reason"]

    assert reason("free", CARD) == "stop"
    assert reason("strict", "the swordfish") == "content_filter"
    assert reason("gone", "hello") == 500
    server.engine.close()


def test_without_guardrails_the_field_is_refused(chat: Chat) -> None:
    server = Server(chat, None)
    response = server.post(guardrails={})
    assert response.status_code == 400
    assert "start it with serve.guardrails" in response.json()["error"]["message"]
    server.engine.close()


def test_a_judge_asks_our_own_model(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(
        """
rails:
  input: {flows: [self check input]}
prompts:
  - task: self_check_input
    content: 'Is this about a bank? "{{ user_input }}" Answer yes to block it, else no:'
"""
    )
    server = Server(chat, Guardrails.from_config(settings(tmp_path), "bank"))
    server.answer = "Yes"
    asked = {"options": {"log": {"llm_calls": True}}}
    body = server.post("what is the weather", guardrails=asked).json()
    assert body["choices"][0]["finish_reason"] == "content_filter"
    (call,) = body["guardrails"]["log"]["llm_calls"]
    assert call["task"] == "self_check_input"
    assert call["prompt_tokens"] > 0
    server.answer = "No"
    assert server.ask("what is the weather")[1] == "stop"
    server.engine.close()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.yml": "rails:\n  input: {flows: [a"}, r"config\.yml:2: expected"),
        ({"config.yml": "[]"}, r"config\.yml:1: must be a mapping"),
        ({"config.yml": "{}", "a.co": "define bot x\n  'y'\nbad line\n"}, r"a\.co:3: Unknown main"),
        (
            {"config.yml": "colang_version: '2.x'", "a.co": "flow main\n  match x\n y\n"},
            r"a\.co:\d+: ",
        ),
        (
            {"config.yml": "rails: {input: {flows: [no such rail]}}"},
            "`no such rail` does not exist",
        ),
        (
            {
                "config.yml": "rails: {input: {flows: [x]}}",
                "a.co": "define flow x\n  $r = execute lost()\n  if $r\n    stop\n",
            },
            r"a\.co:2: the flow `x` runs the action lost",
        ),
        (
            {
                "config.yml": "rails: {tool_input: {flows: [x]}}",
                "a.co": "define flow x\n  if $tool_name\n    stop\n",
            },
            "the tool_input rail `x` must run one action",
        ),
        ({"config.yml": "rails: {input: {flows: [self check input]}}"}, "self_check_input"),
        (
            {"config.yml": "rails: {input: {flows: [content safety check input $model=guard]}}"},
            "guard",
        ),
        (
            {
                "config.yml": "rails: {output: {flows: [], streaming: {enabled: true, "
                "stream_first: true}}}"
            },
            "stream_first sends a text before it is checked",
        ),
        (
            {"config.yml": "models: [{type: embeddings, engine: FastEmbed, model: any}]"},
            "FastEmbed downloads its model",
        ),
        ({"config.yml": "{}", "config.py": "def init(rails):\n  1 / 0\n"}, "ZeroDivisionError"),
    ],
)
def test_an_error_in_a_configuration_says_where(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        open_configuration(tmp_path, EngineModel("bank"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_configurations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no configuration"):
        find(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        find(tmp_path / "none")


def test_a_setting_that_names_no_configuration_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"serve\.guardrails_default: there is no configuration"):
        Guardrails.from_config(settings(folder, guardrails_default=["none"]), "bank")


def test_the_library_reports_to_nobody(opened: Guardrails, monkeypatch: Any) -> None:
    import nemoguardrails.telemetry as telemetry

    for name in ("CI", "DO_NOT_TRACK", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    sent: list[Any] = []
    monkeypatch.setattr(telemetry.threading, "Thread", lambda *a, **k: sent.append(a))
    telemetry.report_usage(opened._configurations["leaks"]._library.config)
    assert sent == []


@pytest.mark.parametrize("name", ["actions.py", "actions"])
def test_code_of_the_working_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The library runs it, whatever configuration it is told to read."""
    rails = tmp_path / "rails"
    rails.mkdir()
    (rails / "config.yml").write_text("rails: {}\n")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert find(rails) == [rails]
    (here / name).mkdir()
    with pytest.raises(ConfigError, match=r"would also run .*: rename it, or start"):
        find(rails)


def test_rails_check_each_passage_of_a_document(
    chat: Chat, opened: Guardrails, tmp_path: Path
) -> None:
    """One that they block is left out; the question is searched for as input rails changed it."""
    documents = {
        "wires.md": "# Wires\n\nA wire costs 40 dollars.\n",
        "bad.md": "# Wires\n\nA wire costs a swordfish.\n",
    }
    config = index_config(write_documents(tmp_path / "documents", documents))
    index = make_index(tmp_path / "index", config, WordEmbedder())
    embedder = WordEmbedder()
    asked: list[str] = []
    embed = embedder.embed
    embedder.embed = lambda texts, kind: asked.extend(texts) or embed(texts, kind)  # type: ignore
    given = {**DEFAULTS["rag"], "indexes": ["x"], "default": "bank", "instruction": "Read."}
    collections = Collections(
        {"bank": Search(index, open_store(index), embedder)}, RagConfig.model_validate(given)
    )
    server = Server(chat, opened, collections=collections)
    every = {"config_ids": ["every"]}
    body = server.post("What does a wire cost, Ada?", guardrails=every, max_tokens=20).json()
    assert [r["document_name"] for r in body["citations"]["results"]] == ["wires.md"]
    assert not any("swordfish" in prompt for prompt in server.prompts)
    assert "What does a wire cost, X?" in asked
    server.answer = "swordfish"
    body = server.post("What does a wire cost?", guardrails=every, max_tokens=20).json()
    assert body["choices"][0]["finish_reason"] == "content_filter"
    assert "citations" not in body
