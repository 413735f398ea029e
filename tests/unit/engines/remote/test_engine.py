"""Another server as an engine: our own and one that speaks as vLLM does, running in the test."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp
from tokenizers import Tokenizer, decoders, pre_tokenizers

from pipeline.config.defaults import default_config
from pipeline.core.errors import ArtifactError, ConfigError, MissingRuntime
from pipeline.engines.base import EngineFailed, QueueFull, Sampling
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.engines.remote import engine as remote_engine
from pipeline.engines.remote.description import API_KEY, describe
from pipeline.engines.remote.engine import RemoteEngine
from pipeline.engines.remote.requests import request_body
from pipeline.models.chat.renderer import Chat
from pipeline.serving.address import listen
from pipeline.serving.app import create_app
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel, say

ANSWER = "Domestic wires cost 18 dollars.\n\nOpen it online, please: é ✓"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("model"), "demo"))


@contextmanager
def running(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """The app on a port of this machine; its /v1."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", log_config=None))
    with listen("127.0.0.1", port) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)


@contextmanager
def our_server(chat: Chat, *, slow: bool = False) -> Iterator[tuple[str, BatchingEngine]]:
    """Says ANSWER; a slow one goes on for as long as a test may take."""

    def drawl(sequence: Sequence[int]) -> int:
        time.sleep(0.03)
        return 300

    follow = drawl if slow else say(chat, ANSWER)
    model = ListModel(follow, slots=4, max_seq_len=200)
    engine = BatchingEngine(model, max_input_len=100, max_queue=50)
    with running(create_app(engine, chat, model="bank", slots=4)) as url:
        yield url, engine


SETTINGS = default_config(
    {
        "engine.name": "remote",
        "engine.max_batch_size": 4,
        "engine.max_input_len": 256,
        "engine.max_seq_len": 384,
    }
).engine


def opened(chat: Chat, url: str, *, max_queue: int = 50) -> RemoteEngine:
    place = {"base_url": url, "model": "bank"}
    described = describe(SETTINGS.model_copy(update={"arguments": place}), chat)
    return RemoteEngine(chat, described, max_queue=max_queue)


async def closed(engine: RemoteEngine) -> None:
    engine.close()
    await asyncio.sleep(0.01)


def greedy(chat: Chat, max_tokens: int = 90, **changes: Any) -> Sampling:
    return Sampling(max_tokens, temperature=0, stop_ids=frozenset(chat.stop_ids), **changes)


def prompt(chat: Chat) -> list[int]:
    return chat.prompt([{"role": "user", "content": "What does a wire transfer cost?"}])


async def read(engine: RemoteEngine, ids: Sequence[int], how: Sampling) -> list[int]:
    return [token.id async for tokens in engine.generate(ids, how) for token in tokens]


async def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_answers_are_those_of_the_other_server(chat: Chat) -> None:
    with our_server(chat) as (url, _):
        engine = opened(chat, url)
        assert (engine.max_seq_len, engine.max_input_len) == (200, 199)

        async def scenario() -> None:
            answers = await asyncio.gather(
                *(read(engine, prompt(chat), greedy(chat)) for _ in "123456")
            )
            for answer in answers:
                assert chat.decode(answer) == ANSWER
                assert answer[-1] in chat.stop_ids
                assert not set(answer[:-1]) & set(chat.stop_ids)
            short = await read(engine, prompt(chat), greedy(chat, 3))
            assert ANSWER.startswith(chat.decode(short))
            assert not set(short) & set(chat.stop_ids)
            await wait_for(lambda: engine.load()[:2] == (0, 0))
            await closed(engine)

        asyncio.run(scenario())


def test_our_server_in_front_of_another_is_the_same_server(chat: Chat) -> None:
    body = {
        "model": "bank",
        "messages": [{"role": "user", "content": "What does a wire transfer cost?"}],
        "temperature": 0,
    }
    with our_server(chat) as (url, _):
        engine = opened(chat, url)
        front = create_app(engine, chat, model="bank", slots=4, runtime="remote")

        async def both() -> list[httpx.Response]:
            transport = httpx.ASGITransport(front)
            async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
                path = "/v1/chat/completions"
                found = [
                    await client.post(path, json={**body, **more})
                    for more in ({}, {"logprobs": True})
                ]
            await closed(engine)
            return found

        answer, refused = asyncio.run(both())
        direct = httpx.post(f"{url}/chat/completions", json=body).json()
        assert answer.json()["choices"] == direct["choices"]
        assert direct["choices"][0]["finish_reason"] == "stop"
        assert refused.status_code == 400


def test_an_answer_that_is_given_up_ends_over_there(chat: Chat) -> None:
    with our_server(chat, slow=True) as (url, behind):
        engine = opened(chat, url, max_queue=1)

        async def scenario() -> None:
            streams = [engine.generate(prompt(chat), greedy(chat, 150)) for _ in range(5)]
            assert engine.load()[:2] == (4, 1)
            await wait_for(lambda: behind.load().running == 4)
            # Whichever of them it is that waits over there has no token yet.
            firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
            _, others = await asyncio.wait(firsts, return_when=asyncio.FIRST_COMPLETED)
            for first in others:
                first.cancel()
            with pytest.raises(QueueFull):
                engine.generate(prompt(chat), greedy(chat))
            for stream in streams:
                stream.cancel()
            await wait_for(lambda: behind.load()[:2] == (0, 0))
            assert engine.load()[:2] == (0, 0)
            await closed(engine)

        asyncio.run(scenario())


def test_what_the_other_server_refuses_is_refused_with_its_words(chat: Chat) -> None:
    with our_server(chat) as (url, behind):
        engine = opened(chat, url)

        async def scenario() -> None:
            with pytest.raises(ValueError, match="token ids must be from 0 to"):
                await read(engine, [10**6], greedy(chat))
            assert engine.down() is None
            await closed(engine)

        asyncio.run(scenario())
        app = create_app(behind, chat, model="bank2", slots=4)
        lacking = pytest.raises(MissingRuntime, match=r"has no model bank: .* one of bank2")
        with running(app) as other, lacking:
            opened(chat, other)


def test_a_server_that_goes_is_told_of_and_found_again(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote_engine, "PROBE_SECONDS", 0.05)

    async def scenario() -> None:
        server = our_server(chat, slow=True)
        url, behind = server.__enter__()
        engine = opened(chat, url)
        going = asyncio.create_task(read(engine, prompt(chat), greedy(chat, 150)))
        await wait_for(lambda: behind.load().running == 1)
        await asyncio.to_thread(server.__exit__, None, None, None)
        with pytest.raises(EngineFailed):
            await going
        with pytest.raises(EngineFailed, match="does not answer"):
            await read(engine, prompt(chat), greedy(chat))
        assert "does not answer" in (engine.down() or "")
        with pytest.raises(EngineFailed, match="does not answer"):
            engine.generate(prompt(chat), greedy(chat))
        again = BatchingEngine(ListModel(say(chat, ANSWER), slots=4, max_seq_len=200),
                               max_input_len=100, max_queue=9)  # fmt: skip
        app = create_app(again, chat, model="bank", slots=4)
        with running(app, int(url.rsplit(":", 1)[1].split("/")[0])):
            await wait_for(lambda: engine.down() is None)
            assert chat.decode(await read(engine, prompt(chat), greedy(chat))) == ANSWER
            await closed(engine)

    asyncio.run(scenario())
    said = capsys.readouterr().err
    assert "not ready" in said
    assert "answers again" in said


def test_nobody_there(chat: Chat) -> None:
    with pytest.raises(MissingRuntime, match=r"does not answer .*: start it, or set engine\.arg"):
        opened(chat, "http://127.0.0.1:9/v1")


class Scripted:
    """A server as vLLM's: takes its fields, gives token ids, wants a key."""

    def __init__(self, ids: Sequence[int], *, key: str = "", strict: bool = False) -> None:
        self.ids, self.key, self.strict = list(ids), key, strict
        self.bodies: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None
        self.status = 200
        self.oddity = ""  # an event that is sent before the others

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "who are you?"}}, 401)
        if request.url.path == "/v1/models":
            return JSONResponse({"data": [{"id": "bank", "max_model_len": 64}]})
        body = await request.json()
        self.bodies.append(body)
        if self.status != 200:
            return JSONResponse({"error": {"message": "not now"}}, self.status)
        if self.strict and {"return_token_ids", "top_k", "ignore_eos"} & set(body):
            return JSONResponse({"error": {"message": "unknown field"}}, 400)
        ids = {"token_ids": [7]} if body.get("return_token_ids") else {}
        if not body["stream"]:
            return JSONResponse({"choices": [{"text": "a", **ids}]})
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        yield ": a comment, as proxies send to keep a connection\n\n"
        if self.oddity:
            yield f"data: {self.oddity}\n\n"
        for token in self.ids[:-1]:
            choice = {"text": "?", "token_ids": [token], "finish_reason": None}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        if self.error:
            yield f"data: {json.dumps({'error': self.error})}\n\n"
            return
        choice = {"text": "", "token_ids": [self.ids[-1]], "finish_reason": "stop"}
        yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        yield f"data: {json.dumps({'choices': [], 'usage': {}})}\n\n"
        yield "data: [DONE]\n\n"


def test_token_ids_are_taken_where_the_server_gives_them(chat: Chat) -> None:
    stop = chat.stop_ids[0]
    server = Scripted([50, 60, 70, stop])
    with running(server) as url:
        engine = opened(chat, url)
        assert engine.max_seq_len == 64

        async def scenario() -> None:
            how = greedy(chat, top_k=5, logit_bias={9: -3.0}, seed=4)
            assert await read(engine, [1, 2], how) == [50, 60, 70, stop]
            server.error = {"message": "out of memory"}
            with pytest.raises(EngineFailed, match="out of memory"):
                await read(engine, [1, 2], how)
            await closed(engine)

        asyncio.run(scenario())
    asked = server.bodies[4]
    assert asked["prompt"] == [1, 2]
    assert asked["stop_token_ids"] == sorted(chat.stop_ids)
    assert asked["logit_bias"] == {"9": -3.0}
    assert (asked["top_k"], asked["seed"], asked["stream"]) == (5, 4, True)


def test_a_key_comes_from_the_environment_and_is_never_said(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(Scripted([7, 7], key="secret-key-1")) as url:
        monkeypatch.setenv(API_KEY, "wrong-key-2")
        with pytest.raises(MissingRuntime, match=f"401: who are you.* {API_KEY}") as refused:
            opened(chat, url)
        assert "wrong-key-2" not in str(refused.value)
        monkeypatch.setenv(API_KEY, "secret-key-1")
        engine = opened(chat, url)

        async def scenario() -> None:
            assert await read(engine, [1], greedy(chat)) == [7, 7, chat.stop_ids[0]]
            await closed(engine)

        asyncio.run(scenario())
    assert "secret-key-1" not in "".join(capsys.readouterr())


def test_white_space_around_the_key_is_not_of_it(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a secret that was written to a file with a final line break."""
    monkeypatch.setenv(API_KEY, " secret-key-1\n")
    with running(Scripted([7, 7], key="secret-key-1")) as url:
        assert opened(chat, url).max_seq_len == 64


@pytest.mark.parametrize("key", ["secret-1\nsecret-2", "secret-1\x01", "secret-1-ключ"])
def test_a_key_that_cannot_be_sent_is_refused_unsaid(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(API_KEY, key)
    with running(Scripted([7, 7])) as url, pytest.raises(ConfigError, match=API_KEY) as refused:
        opened(chat, url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("user", ["anna:hush", "anna:hu:@sh", ":hush"])
def test_a_password_in_the_url_is_not_said(chat: Chat, user: str) -> None:
    place = r"engine=remote: http://127\.0\.0\.1:9/v1 does not answer"
    with pytest.raises(MissingRuntime, match=place):
        opened(chat, f"http://{user}@127.0.0.1:9/v1")


@pytest.mark.parametrize("url", ["http://", "http://[::1/v1", "http://a:99999/v1", "ftp://a/v1"])
def test_what_is_no_url_is_refused(chat: Chat, url: str) -> None:
    with pytest.raises(ConfigError, match=r"needs engine\.arguments\.base_url=http://host:port"):
        opened(chat, url)


CARDS = '{"data": [{"id": "bank", "max_model_len": "long"}]}'


@pytest.mark.parametrize(
    ("models", "completions"),
    [
        ("<html>\nWelcome\n</html>", ""),
        ('{"object": "list"}', ""),
        ('{"data": {"id": "bank"}}', ""),
        ('{"data": ["bank"]}', ""),
        ("[]", ""),
        (CARDS, "<html>\nWelcome\n</html>"),
        (CARDS, '{"choices": null}'),
    ],
)
def test_a_server_of_another_kind_is_told_in_a_line(
    chat: Chat, models: str, completions: str
) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            said = models if scope["path"] == "/v1/models" else completions
            await Response(said, media_type="text/html")(scope, receive, send)

    lacking = pytest.raises(MissingRuntime, match=r"/v1 does not have OpenAI's API: it answers")
    with running(other) as url, lacking as refused:
        opened(chat, url)
    assert "\n" not in str(refused.value)


def test_a_page_of_many_lines_is_told_in_one(chat: Chat) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await Response("<html>\n404\n</html>", 404)(scope, receive, send)

    lacking = pytest.raises(MissingRuntime, match="answers 404: <html> 404 </html>;")
    with running(other) as url, lacking:
        opened(chat, url)


def test_a_server_that_knows_openais_fields_alone_gets_no_others(chat: Chat) -> None:
    server = Scripted([7, 7], strict=True)
    with running(server) as url:
        engine = opened(chat, url)
        with pytest.raises(ValueError, match="top_k: the server behind this one does not support"):
            engine.generate([1], greedy(chat, top_k=3))
        with pytest.raises(ValueError, match="ignore_eos: the server behind this one does not"):
            engine.generate([1], Sampling(5, temperature=0))
    assert request_body("bank", [1], greedy(chat), frozenset()).keys() == {
        *("model", "prompt", "max_tokens", "temperature", "top_p", "stream")
    }


def test_an_answer_that_is_to_go_on_past_its_end_is_asked_for_so(chat: Chat) -> None:
    server = Scripted([7, 7])
    with running(server) as url:
        engine = opened(chat, url)

        async def scenario() -> None:
            await read(engine, [1], Sampling(5, temperature=0))
            await read(engine, [1], greedy(chat))
            await closed(engine)

        asyncio.run(scenario())
    assert server.bodies[-2]["ignore_eos"] is True
    assert "ignore_eos" not in server.bodies[-1]


def test_events_of_another_kind_neither_end_nor_hold_up_an_answer(chat: Chat) -> None:
    server = Scripted([50, chat.stop_ids[0]])
    with running(server) as url:
        engine = opened(chat, url)

        async def scenario() -> None:
            for server.oddity in ('{"object": "ping"}', '{"choices": null, "error": null}'):
                assert await read(engine, [1], greedy(chat)) == [50, chat.stop_ids[0]]
            for server.oddity in ("not json", "[1]", '{"choices": [1]}'):
                with pytest.raises(EngineFailed, match="the server behind this one sent"):
                    await asyncio.wait_for(read(engine, [1], greedy(chat)), 10)
                assert engine.down() is None
            await closed(engine)

        asyncio.run(scenario())


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_makes_clients_ask_again(chat: Chat, status: int) -> None:
    server = Scripted([50, chat.stop_ids[0]])
    body = {"model": "bank", "prompt": "Cost?"}
    with running(server) as url:
        engine = opened(chat, url)
        front = create_app(engine, chat, model="bank", slots=4, runtime="remote")

        async def scenario() -> None:
            server.status = status
            transport = httpx.ASGITransport(front)
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://front") as client,
                front.router.lifespan_context(front),
            ):
                refused = await client.post("/v1/completions", json=body)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                begun = await client.post("/v1/completions", json={**body, "stream": True})
                assert '"code":"rate_limit_exceeded"' in begun.text
                assert (await client.get("/health/ready")).status_code == 503
                server.status = 200
                while (await client.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.05)

        asyncio.run(asyncio.wait_for(scenario(), 30))


def test_the_models_own_defaults_are_left_to_a_server_that_lacks_them(chat: Chat) -> None:
    defaults = {"top_k": 20, "repetition_penalty": 1.1, "temperature": 0.7}
    body = {"model": "bank", "prompt": "Cost?", "max_tokens": 3}
    for strict in (True, False):
        server = Scripted([7, 7], strict=strict)
        with running(server) as url:
            engine = opened(chat, url)
            front = create_app(engine, chat, model="bank", slots=4, defaults=defaults)

            async def asked(front: Any = front, **more: Any) -> httpx.Response:
                transport = httpx.ASGITransport(front)
                async with httpx.AsyncClient(transport=transport, base_url="http://f") as client:
                    return await client.post("/v1/completions", json={**body, **more})

            assert asyncio.run(asked()).status_code == 200
            assert server.bodies[-1]["temperature"] == 0.7
            assert server.bodies[-1].get("top_k") == (None if strict else 20)
            if strict:
                assert "top_k: the server behind" in asyncio.run(asked(top_k=20)).text


def test_a_server_that_answers_no_question_is_told_of(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_in_vain(*_: Any, **__: Any) -> httpx.Response:
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(httpx, "post", wait_in_vain)
    lacking = pytest.raises(MissingRuntime, match=r"/completions does not answer \(timed out\)")
    with running(Scripted([7, 7])) as url, lacking:
        opened(chat, url)


def test_a_tokenizer_that_changes_text_in_pieces_needs_token_ids(
    chat: Chat, tmp_path: Path
) -> None:
    folder = make_model_folder(tmp_path, "demo")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # as SentencePiece: a space before all
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    lacking = pytest.raises(ArtifactError, match="returns no token ids, and the tokenizer in")
    with running(Scripted([7, 7], strict=True)) as url, lacking:
        opened(Chat.load(folder), url)
