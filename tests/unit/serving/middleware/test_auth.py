"""Keys and rate limits, of a small application and of the whole API."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.keyring import Keyring, digest
from pipeline.serving.middleware import rate_limits, request_context
from pipeline.serving.middleware.auth import AuthMiddleware
from pipeline.serving.middleware.rate_limits import RateLimiter
from pipeline.serving.middleware.request_log import InFlight, RequestLogMiddleware
from pipeline.serving.middleware.stack import MiddlewareStack
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import answering, ask
from tests.unit.serving.fake_models import ListModel, say

HELLO = [{"role": "user", "content": "Hello"}]


def keyring(tmp_path: Path, **limits: Any) -> Keyring:
    file = tmp_path / "keys.jsonl"
    lines = [{"name": "anna", "sha256": digest("right"), **limits}]
    lines.append({"name": "ben", "sha256": digest("other")})
    file.write_text("\n".join(map(json.dumps, lines)))
    return Keyring(file)


@pytest.fixture
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("door"), "demo"))


@pytest.fixture
def engine(chat: Chat) -> Iterator[BatchingEngine]:
    model = ListModel(say(chat, "It costs 5 euros."), max_seq_len=96)
    engine = BatchingEngine(model, max_input_len=60, max_queue=4)
    yield engine
    engine.close()


def door(ring: Keyring, app: Any = None) -> Any:
    def whose(request: Request) -> Any:
        key = request_context.current().key
        return {"key": key and key.name}

    layered = AuthMiddleware(app or answering(whose), ring)
    return RequestLogMiddleware(layered, in_flight=InFlight(), failed=lambda status: None)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [
    {}, bearer("wrong"), bearer(""), {"authorization": "right"}, {"authorization": "Basic right"},
    bearer("right2"), {"authorization": b"Bearer \xff\xfe"},
])  # fmt: skip
def test_a_wrong_or_missing_key_is_401_with_the_same_response(
    tmp_path: Path, headers: dict[str, Any]
) -> None:
    response = ask(door(keyring(tmp_path)), "POST", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.json()["error"]["message"].startswith("Incorrect API key provided")


def test_a_valid_key_is_accepted_and_known_to_the_application(tmp_path: Path) -> None:
    app = door(keyring(tmp_path))
    assert ask(app, headers=bearer("right")).json() == {"key": "anna"}
    assert ask(app, headers={"x-api-key": "right"}).json() == {"key": "anna"}
    assert ask(app, headers={"x-api-key": "right2"}).status_code == 401


@pytest.mark.parametrize("path", ["/tokenize", "/v1/health/live/x", "/v1/metadata", "/load/"])
def test_paths_outside_v1_need_a_key_too(tmp_path: Path, path: str) -> None:
    app = door(keyring(tmp_path))
    assert ask(app, path=path).status_code == 401
    assert ask(app, path="/health").status_code == 200
    assert ask(app, headers={"Authorization": "bearer  other "}).json() == {"key": "ben"}


@pytest.mark.parametrize(("encoding", "status"), [("utf-8", 200), ("latin-1", 401)])
def test_a_key_that_is_not_ascii_is_read_as_utf_8(encoding: str, status: int) -> None:
    app = door(Keyring(None, {"SERVE_API_KEY": "clé"}))
    assert ask(app, headers={"authorization": "Bearer clé".encode(encoding)}).status_code == status


@pytest.mark.parametrize(
    "path", ["/health/live", "/v1/health/ready", "/metrics", "/v1/metrics", "/"]
)
def test_health_metrics_and_the_page_need_no_key(tmp_path: Path, path: str) -> None:
    assert ask(door(keyring(tmp_path)), path=path).json() == {"key": None}


def test_an_expired_key_is_refused_with_its_time(tmp_path: Path) -> None:
    app = door(keyring(tmp_path, expires="2020-01-31T12:00:00Z"))
    response = ask(app, headers=bearer("right"))
    assert response.status_code == 401
    message = response.json()["error"]["message"]
    assert message == "The API key 'anna' expired at 2020-01-31 12:00 UTC: ask for a new one"
    assert ask(app, headers=bearer("other")).status_code == 200
    app = door(keyring(tmp_path, expires="2999-01-31T12:00:00+02:00"))
    assert ask(app, headers=bearer("right")).status_code == 200


def test_requests_are_limited_by_key_and_reported_in_headers(tmp_path: Path) -> None:
    async def run() -> list[Any]:
        import httpx

        app = door(keyring(tmp_path, requests_per_minute=2))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            sent = [await client.post("/v1/x", headers=bearer("right")) for _ in range(3)]
            sent.append(await client.get("/v1/x", headers=bearer("right")))
            sent.append(await client.post("/v1/x", headers=bearer("other")))
        return sent

    first, second, third, listing, other = asyncio.run(run())
    assert [r.status_code for r in (first, second, third, listing, other)] == [
        200, 200, 429, 200, 200,
    ]  # fmt: skip
    left = [r.headers["x-ratelimit-remaining-requests"] for r in (first, second, third)]
    assert left == ["1", "0", "0"]
    assert third.headers["x-ratelimit-limit-requests"] == "2"
    assert third.headers["x-ratelimit-reset-requests"] in ("1m0s", "60s", "59s")
    assert 58 <= int(third.headers["retry-after"]) <= 60
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert "limit 2, used 2, requested 1" in third.json()["error"]["message"]
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert not [name for name in other.headers if name.startswith("x-ratelimit")]


def test_prompt_tokens_are_charged_before_and_completions_after(
    tmp_path: Path, engine: BatchingEngine, chat: Chat
) -> None:
    prompt = len(chat.prompt(HELLO))
    answer = len(chat.tokenizer.encode("It costs 5 euros.").ids) + 1
    limit = prompt + answer + prompt - 1  # enough for one, a token too few for the second's prompt
    keys = keyring(tmp_path, tokens_per_minute=limit)
    app = create_app(
        engine, chat, model="bank", slots=4,
        defaults={"temperature": 0}, middleware=MiddlewareStack(keyring=keys),
    )  # fmt: skip
    body = {"model": "bank", "messages": HELLO}

    async def run() -> list[Any]:
        import httpx

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            path, headers = "/v1/chat/completions", bearer("right")
            one = await client.post(path, headers=headers, json={**body, "stream": True})
            return [one, await client.post(path, headers=headers, json=body)]

    one, two = asyncio.run(run())
    assert one.status_code == 200
    assert one.headers["x-ratelimit-remaining-tokens"] == str(limit - prompt)
    assert two.status_code == 429
    assert two.headers["x-ratelimit-remaining-tokens"] == str(prompt - 1)
    assert f"used {prompt + answer}, requested {prompt}" in two.json()["error"]["message"]
    assert int(two.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("status", "given"),
    [
        (400, {"n": 16}),
        (400, {"guided_regex": "("}),
        (400, {"guided_regex": "(", "stream": True}),
        (429, {"n": 8}),
        (500, {"max_tokens": 2}),
        (200, {}),
    ],
)
def test_requests_refused_before_their_first_token_cost_nothing(
    tmp_path: Path, chat: Chat, status: int, given: dict[str, Any]
) -> None:
    model = ListModel(say(chat, "It costs 5 euros."), max_seq_len=96)
    engine = BatchingEngine(model, max_input_len=60, max_queue=4, guides=Guides(chat))
    if status == 429:
        engine._max_queue = 0
    if status == 500:
        model.error = RuntimeError("no such kernel")
    keys = keyring(tmp_path, tokens_per_minute=1000)
    app = create_app(engine, chat, model="bank", slots=4, middleware=MiddlewareStack(keyring=keys))
    body = {"model": "bank", "messages": HELLO, **given}
    response = ask(app, "POST", "/v1/chat/completions", json=body, headers=bearer("right"))
    engine.close()
    assert response.status_code == status
    left = int(response.headers["x-ratelimit-remaining-tokens"])
    assert (left == 1000) == (status not in (200, 500))


def test_tokens_refunded_after_their_window_are_not_added_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keyring(tmp_path, tokens_per_minute=100).find(b"right")
    assert key
    now = time.time()

    async def left(later: float) -> str:
        allowance = RateLimiter().allowance(key)
        await allowance.charge_prompt(60)
        monkeypatch.setattr(time, "time", lambda: now + later)
        await allowance.refund_prompt()
        await allowance.refund_prompt()
        await allowance.charge_prompt(30)
        return (await allowance.headers())["x-ratelimit-remaining-tokens"]

    assert asyncio.run(left(1)) == "70"
    assert asyncio.run(left(90)) == "70"


def test_a_prompt_larger_than_the_limit_must_be_shortened(
    tmp_path: Path, engine: BatchingEngine, chat: Chat
) -> None:
    keys = keyring(tmp_path, tokens_per_minute=1)
    app = create_app(engine, chat, model="bank", slots=4, middleware=MiddlewareStack(keyring=keys))
    body = {"model": "bank", "messages": HELLO}
    response = ask(app, "POST", "/v1/chat/completions", json=body, headers=bearer("right"))
    assert response.status_code == 429
    assert "shorten" in response.json()["error"]["message"]


def test_a_key_for_other_models_does_not_see_this_one(
    tmp_path: Path, engine: BatchingEngine, chat: Chat
) -> None:
    keys = keyring(tmp_path, models=["base"])
    app = create_app(engine, chat, model="bank", slots=4, middleware=MiddlewareStack(keyring=keys))
    body = {"model": "bank", "messages": HELLO}
    for key, status in (("right", 404), ("other", 200)):
        response = ask(app, "POST", "/v1/chat/completions", json=body, headers=bearer(key))
        assert response.status_code == status
    assert ask(app, path="/v1/models", headers=bearer("right")).json()["data"] == []
    assert ask(app, path="/v1/models/bank", headers=bearer("right")).status_code == 404
    assert len(ask(app, path="/v1/models", headers=bearer("other")).json()["data"]) == 1


@pytest.mark.parametrize(("seconds", "text"), [
    (-1, "0ms"), (0.0201, "21ms"), (0.9, "900ms"), (1, "1s"), (11.2, "12s"), (60, "1m0s"),
])  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert rate_limits._duration(seconds) == text
