"""A server that follows an alias: no request is lost, and the old version serves on if the new one
fails."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.engines.base import EngineFailed
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving import following, readiness
from pipeline.serving.app import create_app
from pipeline.serving.following import Follower, Generation, in_thread
from pipeline.serving.metrics import Collectors
from pipeline.serving.middleware.idempotency import KeptAnswers
from pipeline.serving.middleware.request_log import InFlight
from pipeline.serving.middleware.stack import NO_MIDDLEWARE, MiddlewareStack
from pipeline.serving.versions import VERSION_HEADER, Release, ServedVersion
from pipeline.serving.webhook import FRESH_SECONDS, MOST_BYTES, PATH, is_signed
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel, say

ASKED = {"model": "bank", "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]}
SECRET = "between-us-two"


class Engine(BatchingEngine):
    """closed: whether it was. broken: whether its warm-up fails."""

    closed = broken = False

    def generate(self, prompt: Any, sampling: Any) -> Any:
        if self.broken:
            raise EngineFailed("weights are gone")
        return super().generate(prompt, sampling)

    def close(self) -> None:
        self.closed = True
        super().close()


class Alias:
    """What is followed. now: the version that it names; an error is raised."""

    name, alias = "bank", "champion"

    def __init__(self) -> None:
        self.now: int | Exception | None = 1
        self.fetched: list[int] = []
        self.refused: Exception | None = None
        self.told: list[tuple[int | None, str]] = []
        self.looks = 0

    def look(self) -> int | None:
        self.looks += 1
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def fetch(self, number: int) -> Release:
        self.fetched.append(number)
        if self.refused:
            raise self.refused
        return Release(Path(f"v{number}"), ServedVersion("bank", number, f"{number}" * 64))

    def tell(self, number: int | None, address: str) -> None:
        self.told.append((number, address))


class Case:
    """A follower around engines without weights."""

    def __init__(self, folder: Path) -> None:
        self.chat = Chat.load(make_model_folder(folder, "demo"))
        self.alias, self.engines = Alias(), dict[int, Engine]()
        self.in_flight, self.collectors = InFlight(), Collectors()
        self.full: str | None = None
        self.break_load: Exception | None = None
        self.break_engine = False
        self.middleware = NO_MIDDLEWARE
        first = Release(folder, ServedVersion("bank", 1, "1" * 64))
        self.app = Follower(
            Generation(self.load(first), first.version),
            self.load, lambda release: self.full, self.alias, self.in_flight,
            seconds=0.02, drain=5, secret=SECRET, address="host:8000",
        )  # fmt: skip

    def load(self, release: Release) -> FastAPI:
        if self.break_load:
            raise self.break_load
        number = release.version.number
        model = ListModel(say(self.chat, f"I am version {number}."), max_seq_len=96)
        engine = self.engines[number] = Engine(model, max_input_len=60, max_queue=50)
        engine.broken = self.break_engine
        return create_app(
            engine, self.chat, model="bank", slots=4, version=release.version,
            in_flight=self.in_flight, collectors=self.collectors,
            middleware=self.middleware,
        )  # fmt: skip

    def run(self, script: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
        async def go() -> None:
            transport = httpx.ASGITransport(self.app)
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://server") as client,
                self.app._router.lifespan_context(self.app),
            ):
                await until(lambda: self.app.current.app.state.readiness.ready)
                await script(client)

        asyncio.run(asyncio.wait_for(go(), 30))


async def until(holds: Callable[[], Any]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(readiness, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(following, "STEP_SECONDS", 0.005)
    return Case(tmp_path)


def test_a_change_under_load_loses_no_request_and_says_which_version_answers(case: Case) -> None:
    async def script(client: httpx.AsyncClient) -> None:
        answers: list[httpx.Response] = []
        done = False

        async def ask() -> None:
            while not done:
                answers.append(await client.post("/v1/chat/completions", json=ASKED))

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        await until(lambda: len(answers) > 5)
        case.alias.now = 2
        await until(lambda: case.engines[1].closed)
        count = len(answers)
        await until(lambda: len(answers) > count + 5)
        done = True
        await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        for answer in answers:
            text = answer.json()["choices"][0]["message"]["content"]
            assert text == f"I am version {answer.headers[VERSION_HEADER]}."
        assert {answer.headers[VERSION_HEADER] for answer in answers} == {"1", "2"}
        card = (await client.get("/v1/models")).json()["data"][0]
        assert (card["version"], card["engine_digest"]) == ("2", "2" * 64)
        text = (await client.get("/metrics")).text
        counted = [line for line in text.splitlines() if line.startswith("request_success_total")]
        assert [line.partition('model_version="')[2][0] for line in counted] == ["1", "2"]
        total = sum(float(line.rpartition(" ")[2]) for line in counted)
        assert total == len(answers)
        running = [line for line in text.splitlines() if line.startswith("num_requests_running{")]
        assert running == ['num_requests_running{model_name="bank",model_version="2"} 0.0']

    case.run(script)
    assert case.alias.told[0] == (1, "host:8000")
    assert case.alias.told[1:] == [(2, "host:8000"), (None, "host:8000")]
    assert case.engines[2].closed


def test_a_server_of_one_version_names_it_too(case: Case) -> None:
    """As the candidate of a canary does, beside a server that follows."""
    case.middleware = MiddlewareStack(kept_answers=KeptAnswers(60))
    app = case.load(Release(Path("v7"), ServedVersion("bank", 7, "7" * 64)))

    async def script(client: httpx.AsyncClient) -> None:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://server") as other,
            app.router.lifespan_context(app),
        ):
            await until(lambda: app.state.readiness.ready)
            key = {"Idempotency-Key": "one"}
            answer = await other.post("/v1/chat/completions", json=ASKED, headers=key)
            assert answer.headers[VERSION_HEADER] == "7"
            missing = await other.get("/v1/nothing")
            assert (missing.status_code, missing.headers[VERSION_HEADER]) == (404, "7")
            # An answer that is sent again is that of the version that gave it.
            case.alias.now = 2
            await until(lambda: case.app.current.version.number == 2)
            again = await client.post("/v1/chat/completions", json=ASKED, headers=key)
            assert again.json() == answer.json()
            assert again.headers.get_list(VERSION_HEADER) == ["7"]

    case.run(script)


def test_it_goes_back_to_a_version_that_it_served_before(case: Case) -> None:
    async def script(client: httpx.AsyncClient) -> None:
        for number in (2, 1, 2):
            case.alias.now = number
            await until(lambda number=number: case.app.current.version.number == number)
            answer = await client.post("/v1/chat/completions", json=ASKED)
            assert answer.headers[VERSION_HEADER] == str(number)
            await until(lambda: len(case.app._alive) == 1)
        text = (await client.get("/metrics")).text
        counted = [line for line in text.splitlines() if line.startswith("request_success_total")]
        assert [float(line.rpartition(" ")[2]) for line in counted] == [1.0, 2.0]

    case.run(script)


def test_an_answer_in_progress_is_finished_by_the_version_that_began_it(case: Case) -> None:
    async def script(client: httpx.AsyncClient) -> None:
        case.app.current.count += 1  # a stream that a client reads slowly
        case.alias.now = 2
        await until(lambda: case.app.current.version.number == 2)
        await asyncio.sleep(0.05)
        assert not case.engines[1].closed
        case.app._alive[0].count -= 1
        await until(lambda: case.engines[1].closed)

    case.run(script)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("full", "no room for two"),
        ("load", "built for another machine"),
        ("engine", "the warm-up request failed: weights are gone"),
    ],
)
def test_a_version_that_cannot_be_served_leaves_the_old_one_and_is_tried_once(
    case: Case,
    how: str,
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case.full = why if how == "full" else None
    case.break_load = ArtifactError(why) if how == "load" else None
    case.break_engine = how == "engine"

    async def script(client: httpx.AsyncClient) -> None:
        case.alias.now = 2
        await until(lambda: case.app.waiting)
        looks = case.alias.looks
        await until(lambda: case.alias.looks > looks + 2)
        assert case.app.waiting == (2, why)
        answer = await client.post("/v1/chat/completions", json=ASKED)
        assert (answer.status_code, answer.headers[VERSION_HEADER]) == (200, "1")
        assert case.alias.fetched == [2]
        assert how != "engine" or case.engines[2].closed
        monkeypatch.setattr(following, "RETRY_SECONDS", 0.0)
        case.app._changed()  # a webhook, after which it is tried again at each look
        await until(lambda: len(case.alias.fetched) > 2)
        case.full = case.break_load = None
        case.break_engine = False
        case.alias.now = 3
        await until(lambda: case.app.current.version.number == 3)
        assert case.app.waiting is None

    case.run(script)
    assert f"version 2 is not served, version 1 serves on: {why}" in caplog.text


def test_a_registry_or_store_that_is_away_is_said_once_and_asked_again(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(client: httpx.AsyncClient) -> None:
        case.alias.now = PipelineError("the registry does not answer")
        await until(lambda: case.alias.looks > 3)
        case.alias.refused = PipelineError("the store broke off")
        case.alias.now = 2
        await until(lambda: len(case.alias.fetched) > 2)
        assert case.app.current.version.number == 1
        case.alias.refused = None
        await until(lambda: case.app.current.version.number == 2)
        case.alias.now = None  # the alias was deleted
        looks = case.alias.looks
        await until(lambda: case.alias.looks > looks + 1)
        assert case.app.current.version.number == 2
        case.alias.now = RuntimeError("a bug")
        await until(lambda: "unexpected error: version 2 serves on" in caplog.text)

    case.run(script)
    assert caplog.text.count("the registry does not answer") == 1
    assert caplog.text.count("the store broke off") == 1


def signed(body: bytes, secret: str = SECRET, moment: float | None = None) -> dict[str, str]:
    stamp = str(int(time.time() if moment is None else moment))
    content = f"id.{stamp}.".encode() + body
    code = base64.b64encode(hmac.new(secret.encode(), content, hashlib.sha256).digest()).decode()
    return {
        "X-MLflow-Delivery-Id": "id", "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": f"v1,{code}",
    }  # fmt: skip


def event(name: str = "bank") -> bytes:
    data = {"name": name, "alias": "champion", "version": "2"}
    return json.dumps({"entity": "model_version_alias", "action": "created", "data": data}).encode()


def test_a_signed_webhook_wakes_it_and_nothing_else_does(case: Case) -> None:
    case.app._seconds = 3600

    async def script(client: httpx.AsyncClient) -> None:
        async def post(body: bytes, headers: dict[str, str]) -> int:
            return (await client.post(PATH, content=body, headers=headers)).status_code

        old = time.time() - FRESH_SECONDS - 10
        assert await post(event(), {}) == 401
        assert await post(event(), signed(event(), "another")) == 401
        assert await post(event("other"), signed(event())) == 401
        assert await post(event(), signed(event(), moment=old)) == 401
        assert await post(event(), signed(event()) | {"X-MLflow-Timestamp": "x"}) == 401
        assert await post(b"[]", signed(b"[]")) == 400
        assert await post(b"{", signed(b"{")) == 400
        large = b"x" * (MOST_BYTES + 1)
        assert await post(large, signed(large)) == 413
        assert (await client.get(PATH)).status_code == 405
        assert await post(event("other"), signed(event("other"))) == 204
        await asyncio.sleep(0.03)
        assert case.alias.looks == 0
        case.alias.now = 2
        assert await post(event(), signed(event())) == 204
        await until(lambda: case.app.current.version.number == 2)

    case.run(script)
    case.app._webhook._secret = ""

    async def refused() -> int:
        transport = httpx.ASGITransport(case.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (
                await client.post(PATH, content=event(), headers=signed(event(), ""))
            ).status_code

    assert asyncio.run(refused()) == 403
    assert not is_signed({}, b"", "")


def test_the_server_sees_the_readiness_of_what_serves_and_ends_it(case: Case) -> None:
    async def script(client: httpx.AsyncClient) -> None:
        state = case.app.state
        said: list[str] = []
        state.readiness.announce = lambda: said.append("ready")
        state.readiness.announce()
        assert said == ["ready"]
        state.readiness.end()
        assert (await client.get("/health/ready")).status_code == 503
        case.alias.now = 2
        await until(lambda: case.app.current.version.number == 2)
        assert (await client.get("/health/ready")).status_code == 503  # it shuts down

    case.run(script)


def test_what_a_thread_raises_comes_back_and_a_closed_loop_is_left_alone() -> None:
    def fail() -> None:
        raise PipelineError("no")

    async def run() -> None:
        with pytest.raises(PipelineError, match="no"):
            await in_thread(fail)
        assert await in_thread(lambda: 5) == 5
        waiting = asyncio.create_task(in_thread(lambda: time.sleep(0.03)))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(run())
    time.sleep(0.05)
    closed = SimpleNamespace(is_closed=lambda: True)
    following._hand(closed, lambda value: None, 1)  # type: ignore[arg-type]
