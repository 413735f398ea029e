"""A server whose engine is started again while it runs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from pipeline.chat import Chat
from pipeline.serving import readiness
from pipeline.serving.app import create_app
from pipeline.serving.batching import BatchingEngine
from pipeline.serving.engine import EngineFailed, Sampling
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.models import ListModel, say

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


def test_it_is_not_ready_says_when_to_ask_again_and_comes_back(
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
