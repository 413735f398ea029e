"""A request that is sent again."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pipeline.serving.keyring import Keyring, digest
from pipeline.serving.middleware import idempotency
from pipeline.serving.middleware.auth import AuthMiddleware
from pipeline.serving.middleware.idempotency import IdempotencyMiddleware, KeptAnswers
from pipeline.serving.middleware.request_log import InFlight, RequestLogMiddleware


class Site:
    """An application that counts what it answers, with the layers of the server."""

    def __init__(self, answers: KeptAnswers, keyring: Keyring | None = None) -> None:
        self.count, self.status, self.gate = 0, 200, asyncio.Event()
        self.gate.set()
        app: Any = IdempotencyMiddleware(self._app, answers)
        app = AuthMiddleware(app, keyring) if keyring else app
        self.app = RequestLogMiddleware(app, in_flight=InFlight(), failed=lambda status: None)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        asked = await Request(scope, receive).json()
        self.count += 1
        number = self.count
        await self.gate.wait()
        response: Response = JSONResponse({"number": number}, self.status)
        if asked.get("stream"):
            response = StreamingResponse(self._parts(number), media_type="text/event-stream")
        await response(scope, receive, send)

    async def _parts(self, number: int) -> Any:
        for part in ("data: a\n\n", f"data: {number}\n\n"):
            yield part

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://server")


def asking(key: str = "one", **more: str) -> dict[str, str]:
    return {"idempotency-key": key, **more}


@pytest.mark.parametrize("body", [{"a": 1}, {"stream": True}])
def test_the_second_gets_the_answer_of_the_first(body: dict[str, Any]) -> None:
    async def run() -> None:
        site = Site(KeptAnswers(60))
        async with site.client() as client:
            first = await client.post("/v1/x", json=body, headers=asking())
            second = await client.post("/v1/x", json=body, headers=asking())
            other = await client.post("/v1/x", json=body, headers=asking("two"))
            without = await client.post("/v1/x", json=body)
        assert first.content == second.content
        assert first.headers["content-type"] == second.headers["content-type"]
        assert second.headers["idempotent-replayed"] == "true"
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert "idempotent-replayed" not in first.headers
        assert len({first.content, other.content, without.content}) == 3
        assert site.count == 3

    asyncio.run(run())


def test_a_key_is_for_one_request() -> None:
    async def run() -> None:
        site = Site(KeptAnswers(60))
        async with site.client() as client:
            await client.post("/v1/x", json={"a": 1}, headers=asking())
            for path, body in (("/v1/x", {"a": 2}), ("/v1/y", {"a": 1})):
                reused = await client.post(path, json=body, headers=asking())
                assert reused.status_code == 422
                assert reused.json()["error"]["code"] == "idempotency_key_reused"
            wrong = await client.post("/v1/x", json={}, headers=asking("a b"))
            assert wrong.status_code == 400
        assert site.count == 1

    asyncio.run(run())


def test_while_the_first_is_in_progress_the_second_waits_its_turn() -> None:
    async def run() -> None:
        site = Site(KeptAnswers(60))
        site.gate.clear()
        async with site.client() as client:
            first = asyncio.create_task(client.post("/v1/x", json={}, headers=asking()))
            while not site.count:
                await asyncio.sleep(0)
            second = await client.post("/v1/x", json={}, headers=asking())
            assert (second.status_code, second.headers["retry-after"]) == (409, "1")
            site.gate.set()
            await first
            third = await client.post("/v1/x", json={}, headers=asking())
            assert third.json() == (await first).json()

    asyncio.run(run())


@pytest.mark.parametrize(("status", "kept"), [
    (200, True), (400, True), (404, True), (429, False), (500, False), (503, False),
])  # fmt: skip
def test_failures_that_may_pass_are_not_kept(status: int, kept: bool) -> None:
    async def run() -> None:
        site = Site(KeptAnswers(60))
        site.status = status
        async with site.client() as client:
            for _ in range(2):
                await client.post("/v1/x", json={}, headers=asking())
        assert (site.count == 1) == kept

    asyncio.run(run())


def test_answers_are_forgotten_when_they_are_old_or_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        now = 100.0
        monkeypatch.setattr(idempotency.time, "monotonic", lambda: now)
        site = Site(KeptAnswers(60, most_bytes=30))  # an answer has 12 bytes
        async with site.client() as client:
            for key in ("a", "b", "c"):
                await client.post("/v1/x", json={}, headers=asking(key))
            again = [
                (await client.post("/v1/x", json={}, headers=asking(key))).json()["number"]
                for key in ("c", "b", "a")
            ]
            assert again == [3, 2, 4]
            now = 161.0
            last = await client.post("/v1/x", json={}, headers=asking("c"))
            assert last.json()["number"] == 5

    asyncio.run(run())


def test_clients_do_not_see_each_others_answers(tmp_path: Any) -> None:
    async def run() -> None:
        file = tmp_path / "keys.jsonl"
        lines = [f'{{"name": "{n}", "sha256": "{digest(n)}"}}' for n in ("anna", "ben")]
        file.write_text("\n".join(lines))
        site = Site(KeptAnswers(60), Keyring(file))
        async with site.client() as client:
            got = [
                await client.post("/v1/x", json={}, headers=asking(authorization=f"Bearer {name}"))
                for name in ("anna", "ben", "anna")
            ]
        assert [response.json()["number"] for response in got] == [1, 2, 1]

    asyncio.run(run())
