"""The models that a server lists, and LoRA adapters that are loaded while it runs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.keyring import Key, digest
from pipeline.serving.middleware.stack import MiddlewareStack
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel, say

HELLO = [{"role": "user", "content": "Hello"}]


class Adapted(ListModel):
    """Its adapters say something else; their folders hold what."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(self._next, vocab_size=chat.vocab_size, max_seq_len=96)
        self._chat = chat
        self._says = {None: say(chat, "base")}
        self._row: str | None = None

    def _next(self, sequence: Any) -> int:
        return self._says[self._row](sequence)

    def use_adapter(self, row: int, name: str | None) -> None:
        self._row = name

    def check_adapter(self, folder: Path) -> None:
        if not (folder / "adapter_config.json").is_file():
            raise ValueError(f"{folder} is no adapter in the PEFT library's form")

    def add_adapter(self, name: str, folder: Path) -> None:
        file = folder / "adapter_config.json"
        self._says[name] = say(self._chat, json.loads(file.read_text())["says"])  # type: ignore[index]

    def remove_adapter(self, name: str) -> None:
        del self._says[name]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("models"), "demo"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"says": "tuned"}))
    return folder


class Server:
    """An application asked in one event loop, since loading waits for the engine's thread."""

    def __init__(self, model: Any, chat: Chat, **how: Any) -> None:
        self.engine = BatchingEngine(model, max_input_len=60, max_queue=4)
        defaults = {"temperature": 0.0}
        self.app = create_app(
            *(self.engine, chat), model="bank", slots=4, runtime="list", defaults=defaults, **how
        )

    def run(self, *asked: tuple[str, str, Any], key: str = "k") -> list[httpx.Response]:
        async def send() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://server", headers=headers
            ) as client:
                return [await client.request(way, path, json=body) for way, path, body in asked]

        try:
            return asyncio.run(send())
        finally:
            self.engine.close()


def start(server: Server) -> Any:
    """The names of the models once it is ready, or why it is not."""

    async def run() -> Any:
        transport = httpx.ASGITransport(server.app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
            server.app.router.lifespan_context(server.app),
        ):
            while "warming" in (status := (await client.get("/health/ready")).json()["status"]):
                await asyncio.sleep(0.01)
            models = (await client.get("/v1/models")).json()["data"]
            return [model["id"] for model in models] if status == "ready" else status

    return asyncio.run(asyncio.wait_for(run(), 20))


def ask(model: str) -> tuple[str, str, Any]:
    return "POST", "/v1/chat/completions", {"model": model, "messages": HELLO}


def load(name: str, folder: Path | str) -> tuple[str, str, Any]:
    return "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}


def unload(name: str) -> tuple[str, str, Any]:
    return "POST", "/v1/unload_lora_adapter", {"lora_name": name}


LIST = ("GET", "/v1/models", None)


def test_an_adapter_is_a_model_until_it_is_unloaded(chat: Chat, adapter: Path) -> None:
    answers = Server(Adapted(chat), chat).run(
        *(ask("tuned"), load("tuned", adapter), LIST, ask("tuned"), ask("bank")),
        *(("GET", "/v1/models/tuned", None), unload("tuned"), LIST, ask("tuned")),
    )
    missing, loaded, listed, tuned, base, card, unloaded, left, gone = answers
    assert (missing.status_code, gone.status_code) == (404, 404)
    assert loaded.text == "Success: LoRA adapter 'tuned' added successfully."
    assert [(m["id"], m["parent"]) for m in listed.json()["data"]] == [
        *(("bank", None), ("tuned", "bank")),
    ]
    assert tuned.json()["choices"][0]["message"]["content"] == "tuned"
    assert tuned.json()["model"] == "tuned"
    assert base.json()["choices"][0]["message"]["content"] == "base"
    assert card.json()["id"] == "tuned"
    assert unloaded.status_code == 200
    assert [m["id"] for m in left.json()["data"]] == ["bank"]


def test_a_name_that_is_unloaded_and_loaded_at_once_is_the_new_one(
    chat: Chat, adapter: Path, tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "adapter_config.json").write_text(json.dumps({"says": "newer"}))
    model = Adapted(chat)
    server = Server(model, chat)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

            def send(way: str, path: str, body: Any) -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(client.request(way, path, json=body))

            await send(*load("tuned", adapter))
            model.gated = True
            answering = send(*ask("tuned"))
            while not server.engine.load().running:
                await asyncio.sleep(0.01)
            changing = [send(*unload("tuned")), send(*load("tuned", newer))]
            await asyncio.sleep(0.1)
            model.gate.release(1000)
            done = await asyncio.gather(answering, *changing)
            return [*done, await send(*LIST), await send(*ask("tuned"))]

    try:
        old, unloaded, loaded, listed, new = asyncio.run(asyncio.wait_for(run(), 20))
    finally:
        server.engine.close()
    assert (unloaded.status_code, loaded.status_code) == (200, 200)
    assert old.json()["choices"][0]["message"]["content"] == "tuned"
    assert [m["id"] for m in listed.json()["data"]] == ["bank", "tuned"]
    assert new.json()["choices"][0]["message"]["content"] == "newer"


def test_a_folder_of_adapters_is_served_from_the_start(chat: Chat, adapter: Path) -> None:
    assert start(Server(Adapted(chat), chat, adapters=adapter.parent)) == ["bank", "adapter"]
    (adapter.parent / "broken").mkdir()
    reason = start(Server(Adapted(chat), chat, adapters=adapter.parent))
    assert "serve.adapters=" in reason
    assert "broken is no adapter" in reason


def test_invalid_adapters_are_refused(chat: Chat, adapter: Path, tmp_path: Path) -> None:
    other = make_model_folder(tmp_path / "other", "llama3")
    (other / "adapter_config.json").write_text('{"says": "x"}')
    (tmp_path / "empty").mkdir()
    asked = [
        (load("x", tmp_path / "missing"), 400, "lora_path", "not a folder on the server"),
        (load("x", tmp_path / "empty"), 400, "lora_path", "no adapter"),
        (load("x", other), 400, "lora_path", "another tokenizer or chat template"),
        (load("bank", adapter), 400, "lora_name", "is in use"),
        (load("two words", adapter), 400, "lora_name", "characters that are not allowed"),
        (unload("x"), 404, "lora_name", "no LoRA adapter 'x'"),
        (("POST", "/v1/load_lora_adapter", {"lora_name": "x"}), 400, "lora_path", "Missing"),
    ]
    answers = Server(Adapted(chat), chat).run(*(request for request, *_ in asked))
    for answer, (_, status, param, words) in zip(answers, asked, strict=True):
        assert answer.status_code == status
        assert answer.json()["error"]["param"] == param
        assert words in answer.json()["error"]["message"]


def test_an_adapters_tokenizer_is_compared_before_it_is_opened(chat: Chat, tmp_path: Path) -> None:
    """The library would not survive this one, and the server would end with it."""
    adapter = make_model_folder(tmp_path / "adapter", "llama3")
    file = adapter / "tokenizer.json"
    doubling = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    exploding = {"type": "Sequence", "normalizers": [doubling] * 60}
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": exploding}))
    (answer,) = Server(Adapted(chat), chat).run(load("x", adapter))
    assert answer.status_code == 400
    assert "another tokenizer or chat template" in answer.json()["error"]["message"]


def test_an_engine_without_adapters_refuses_them(chat: Chat, adapter: Path) -> None:
    plain = ListModel(say(chat, "x"), vocab_size=chat.vocab_size, max_seq_len=96)
    (answer,) = Server(plain, chat).run(load("tuned", adapter))
    assert answer.status_code == 400
    assert "the list engine" in answer.json()["error"]["message"]


def test_keys_may_be_limited_to_models_and_need_admin_to_change_them(
    chat: Chat, adapter: Path
) -> None:
    def run(*asked: Any, **of_key: Any) -> list[httpx.Response]:
        class Keys:
            def find(self, given: bytes | None) -> Key:
                return Key(name="anna", sha256=digest("k"), **of_key)

        middleware = MiddlewareStack(keyring=Keys())  # type: ignore[arg-type]
        return Server(Adapted(chat), chat, middleware=middleware).run(*asked)

    for refused in run(load("tuned", adapter), unload("tuned")):
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "insufficient_permissions"
    loaded, listed, base = run(
        load("tuned", adapter), LIST, ask("bank"), admin=True, models=("tuned",)
    )
    assert loaded.status_code == 200
    assert [m["id"] for m in listed.json()["data"]] == ["tuned"]
    assert base.status_code == 404
    assert "this server has 'tuned'" in base.json()["error"]["message"]
