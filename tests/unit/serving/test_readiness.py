"""A server whose engine restarts while it runs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from pipeline.engines.base import EngineFailed, Sampling
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving import readiness
from pipeline.serving.app import create_app
from pipeline.serving.readiness import Readiness
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel, say

DOWN = "the engine's process ended and is being started again"
ASKED = {"model": "bank", "messages": [{"role": "user", "content": "Hello"}]}


class RestartingEngine(BatchingEngine):
    """Down until it is told otherwise, as a supervised engine is whose process has died."""

    reason: str | None = DOWN

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        if self.reason:
            raise EngineFailed(self.reason)
        return super().generate(prompt, sampling)

    def down(self) -> str | None:
        return self.reason


def test_while_the_engine_restarts_it_is_not_ready_and_sends_retry_after(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "RETRY_SECONDS", 0.01)
    chat = Chat.load(make_model_folder(tmp_path, "demo"))
    model = ListModel(say(chat, "Yes."), max_seq_len=96)
    engine = RestartingEngine(model, max_input_len=60, max_queue=4)
    app = create_app(engine, chat, model="bank", slots=4)

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
            app.router.lifespan_context(app),
        ):
            while (ready := await client.get("/health/ready")).json()["status"] != DOWN:
                await asyncio.sleep(0.01)
            assert ready.status_code == 503
            refused = await client.post("/v1/chat/completions", json=ASKED)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "engine_down"
            assert refused.json()["error"]["message"] == DOWN
            engine.reason = None
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            assert (await client.post("/v1/chat/completions", json=ASKED)).status_code == 200

    asyncio.run(asyncio.wait_for(run(), 20))


class Embedder:
    """Gives its answer when it is let."""

    features: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def embed(self, prompts: list[list[int]]) -> None:
        self.asked.set()
        await self.let.wait()

    def down(self) -> str | None:
        return None


async def warming(seen: list[str | None]) -> tuple[Readiness, Embedder, asyncio.Task[None]]:
    """One whose warm-up answer is awaited; its announcement notes what a client is told then."""
    engine = Embedder()
    waiting = Readiness(engine, None)
    waiting.announce = lambda: seen.append(waiting.reason_not_ready())
    task = asyncio.create_task(waiting.warm_up())
    await asyncio.wait_for(engine.asked.wait(), 20)
    return waiting, engine, task


def test_it_is_announced_before_a_client_can_see_that_it_is_ready() -> None:
    async def run() -> None:
        seen: list[str | None] = []
        waiting, engine, task = await warming(seen)
        engine.let.set()
        while waiting.reason_not_ready():
            assert not seen
            await asyncio.sleep(0)
        assert seen == [None]
        await task

    asyncio.run(run())


def test_one_that_was_stopped_while_it_warmed_up_is_never_ready() -> None:
    async def run() -> None:
        seen: list[str | None] = []
        waiting, engine, task = await warming(seen)
        waiting.end()
        engine.let.set()
        await task
        assert waiting.reason_not_ready() == "shutting down"
        assert not seen

    asyncio.run(run())
