"""The HTTP API without a real model: requests, responses, streams and errors."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.middleware.request_limits import RequestLimits
from pipeline.serving.middleware.stack import MiddlewareStack
from pipeline.serving.openai.protocol import CompletionRequest
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say

ANSWER = "Grüße! It costs 5 € 🌍."
HELLO = [{"role": "user", "content": "Hello"}]
Post = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("app"), "demo"))


@pytest.fixture
def model(chat: Chat) -> ListModel:
    return ListModel(say(chat, ANSWER), max_seq_len=96)


@pytest.fixture
def engine(model: ListModel) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(model, max_input_len=60, max_queue=4)
    yield engine
    model.gated = False
    model.gate.release(1000)
    engine.close()


@pytest.fixture
def app(engine: BatchingEngine, chat: Chat) -> Any:
    return create_app(engine, chat, model="bank", slots=4, defaults={"temperature": 0})


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.fixture
def post(app: Any) -> Post:
    def post(path: str = "/v1/chat/completions", *, raw: Any = None, **body: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with client_of(app) as client:
                given = {"model": "bank", **body}
                if "completions" in path and "prompt" not in body:
                    given = {"messages": HELLO, **given}
                if raw is not None:
                    return await client.post(path, **raw)
                return await client.post(path, json=given)

        return asyncio.run(send())

    return post


def get(app: Any, path: str, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with client_of(app) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(send())


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_a_chat_completion_is_what_openais_client_expects(post: Post, chat: Chat) -> None:
    from openai.types.chat import ChatCompletion

    body = post().json()
    answer = ChatCompletion.model_validate(body, strict=True)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "bank"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(chat.prompt(HELLO))
    assert answer.usage.completion_tokens == len(chat.tokenizer.encode(ANSWER).ids) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_has_the_same_text(post: Post) -> None:
    from openai.types.chat import ChatCompletionChunk

    whole = post().json()
    chunks = events(post(stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    *pieces, last = chunks
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text == ANSWER
    assert [
        p["choices"][0]["finish_reason"] for p in pieces if p["choices"][0]["finish_reason"]
    ] == ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in events(post(stream=True)))


def test_completions_take_text_lists_and_token_ids(post: Post, chat: Chat) -> None:
    from openai.types import Completion

    ids = chat.prompt(HELLO)
    text = chat.decode(ids, control_tokens=True)
    for prompt, count in ((text, 1), (ids, 1), ([text, text], 2), ([ids, ids, ids], 3)):
        body = post("/v1/completions", prompt=prompt, max_tokens=60).json()
        answer = Completion.model_validate(body, strict=True)
        assert [choice.text for choice in answer.choices] == [ANSWER] * count
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(ids) * count
    streamed = events(post("/v1/completions", prompt=ids, max_tokens=60, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == ANSWER


def test_a_completions_text_begins_as_conversations_do(post: Post, chat: Chat) -> None:
    begin = chat.special_tokens["bos_token"]
    with_it = post("/v1/completions", prompt=f"{begin}fee").json()["usage"]
    without = post("/v1/completions", prompt="fee").json()["usage"]
    assert with_it == without
    assert without["prompt_tokens"] == 1 + len(
        chat.tokenizer.encode("fee", add_special_tokens=False).ids
    )


def test_echo_repeats_the_prompt(post: Post) -> None:
    prompt = "Hello <|assistant|>\n"
    for stream in (False, True):
        response = post("/v1/completions", prompt=prompt, echo=True, max_tokens=60, stream=stream)
        bodies = events(response) if stream else [response.json()]
        assert "".join(body["choices"][0]["text"] for body in bodies) == prompt + ANSWER


def test_an_empty_reply_can_be_sent_back(post: Post) -> None:
    """This server gives one itself, and clients send back what they got."""
    empty = {"role": "assistant", "content": ""}
    assert post(messages=[*HELLO, empty, *HELLO]).status_code == 200
    for turn in ({"role": "assistant"}, {"role": "user", "content": " "}):
        assert post(messages=[*HELLO, turn, *HELLO]).status_code == 200


def test_max_tokens_limits_the_output(post: Post) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        body = post(**limit).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 3
        assert body["choices"][0]["message"]["content"] == "Gr\ufffd"  # half of ü


def test_stop_strings_end_the_output_and_are_not_shown(post: Post, engine: BatchingEngine) -> None:
    for stop in ("costs", ["never", "costs"]):
        choice = post(stop=stop).json()["choices"][0]
        assert choice["message"]["content"] == "Grüße! It "
        assert choice["finish_reason"] == "stop"
    streamed = events(post(stop=" 5", stream=True))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed)
    assert text == "Grüße! It costs"


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices_for_one_prompt(post: Post, stream: bool) -> None:
    response = post(n=3, seed=1, stream=stream)
    if stream:
        texts = ["", "", ""]
        for chunk in events(response):
            choice = chunk["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content", "")
    else:
        choices = response.json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        texts = [choice["message"]["content"] for choice in choices]
    assert texts == [ANSWER] * 3


def test_content_parts_and_values_without_effect_are_accepted(post: Post) -> None:
    response = post(
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        user="u",
        metadata={},
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        tools=None,
        tool_choice="auto",
        response_format={"type": "text"},
        top_p=None,
    )
    assert response.json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"model": "gpt"}, 404, "model_not_found", "'gpt' does not exist: this server has 'bank'"),
        ({"foo": 1}, 400, "unknown_parameter", "Unrecognized request argument supplied: foo"),
        ({"messages": []}, 400, "invalid_value", "at least one turn"),
        ({"messages": "Hi"}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "clerk", "content": "x"}]}, 400, "invalid_value", "unknown role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "tool_call_id"),
        ({"messages": [{"role": "user", "content": "<|end|>"}]}, 400, "invalid_value", "<|end|>"),
        ({"temperature": 3}, 400, "invalid_value", "must be at most 2"),
        ({"temperature": "hot"}, 400, "invalid_value", "temperature"),
        ({"top_p": 0}, 400, "invalid_value", "must be greater than 0"),
        ({"n": 0}, 400, "invalid_value", "'n'"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"stop": list("ab") * 17}, 400, "invalid_value", "at most 32"),
        ({"max_tokens": "9"}, 400, "invalid_value", "must be a whole number"),
        ({"ignore_eos": "yes"}, 400, "invalid_value", "must be true or false"),
        ({"tools": [{"type": "function"}]}, 400, "invalid_value", "0.function"),
        ({"tool_choice": "required"}, 400, "invalid_value", "needs tools"),
        ({"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "support functions"),
        ({"reasoning_effort": "high"}, 400, "unsupported_parameter", "reasoning_effort"),
        ({"top_logprobs": 3}, 400, "invalid_value", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "must be at most 20"),
        ({"logit_bias": {"a": 1}}, 400, "invalid_value", "logit_bias"),
        ({"logit_bias": {"9999": 1}}, 400, "invalid_value", "token ids must be from 0 to"),
        ({"logit_bias": {"1": 101}}, 400, "invalid_value", "must be at most 100"),
        ({"frequency_penalty": 2.1}, 400, "invalid_value", "must be at most 2"),
        ({"response_format": {"type": "xml"}}, 400, "invalid_value", "one of 'text'"),
        ({"response_format": {}}, 400, "invalid_value", "'response_format': must have a type"),
        ({"response_format": "json"}, 400, "invalid_value", "must be an object"),
        ({"tool_choice": 3}, 400, "invalid_value", "'tool_choice'"),
        ({"stop": [1]}, 400, "invalid_value", "'stop': give a text or a list of texts"),
        ({"stop": "x" * 257}, 400, "invalid_value", "a stop string has at most 256 characters"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, 400, "invalid_value", "at most 1024"),
        ({"guided_json": 3}, 400, "invalid_value", "must be a text or an object"),
        ({"model": "m" * 3000}, 404, "model_not_found", "mmm…' does not exist"),
        ({"response_format": {"type": "json_schema"}}, 400, "invalid_value", "json_schema"),
        ({"nvext": {"guided_xml": ""}}, 400, "unknown_parameter", "nvext.guided_xml"),
        ({"max_tokens": 95}, 400, "context_length_exceeded", "length is 96 tokens. However, you"),
        (
            {"messages": [{"role": "user", "content": "fee " * 60}]},
            *(400, "context_length_exceeded", "maximum prompt length is 60 tokens"),
        ),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_openais_format(
    post: Post, body: dict[str, Any], status: int, code: str, words: str
) -> None:
    for stream in (False, True):
        response = post(**body, stream=stream)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"
        assert error["param"].split(".")[0] in {*body, "messages"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "not valid JSON"),
        ({"content": b'{"a":"\xff"}', "headers": {"content-type": "application/json"}}, "UTF-8"),
        ({"content": b"[" * 10**4, "headers": {"content-type": "application/json"}}, "nested"),
        ({"content": b"[1]", "headers": {"content-type": "application/json"}}, "JSON object"),
        ({"content": b""}, "JSON object"),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, "JSON object"),
    ],
)
def test_bodies_that_are_not_objects_are_refused(
    post: Post, raw: dict[str, Any], words: str
) -> None:
    response = post(raw=raw)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [400_000], "", None, {"a": 1}, [1, "a"]])
def test_invalid_prompts_are_refused(post: Post, prompt: Any) -> None:
    response = post("/v1/completions", prompt=prompt)
    if prompt == "":  # the beginning of a conversation is a prompt
        assert response.status_code == 200
    else:
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "prompt"
        wrong_ids = prompt in ([-1], [400_000])
        words = (
            "token ids must be from" if wrong_ids else "give text, token ids or a list of either"
        )
        assert words in error["message"]


def test_a_huge_list_of_prompts_is_refused_before_its_items_are_validated() -> None:
    with pytest.raises(ValidationError, match="at most 2048 texts") as refused:
        CompletionRequest.model_validate({"model": "bank", "prompt": [None] * 3000})
    assert refused.value.error_count() == 1


def test_models_are_listed_and_named(app: Any) -> None:
    from openai.types import Model

    (card,) = get(app, "/v1/models").json()["data"]
    assert Model.model_validate(card).id == "bank"
    assert get(app, "/v1/models/bank").json() == card
    assert get(app, "/v1/models/other").status_code == 404


def test_an_unknown_path_is_refused_in_openais_shape(app: Any) -> None:
    for path, status in (("/v1/audio/speech", 404), ("/v1/completions", 405)):
        response = get(app, path)
        assert response.status_code == status
        assert f"GET {path}" in response.json()["error"]["message"]


def test_ready_only_after_a_generated_token(app: Any, model: ListModel) -> None:
    model.gated = True

    async def run() -> None:
        async with client_of(app) as client:
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.head("/health/ready")).status_code == 503
            assert (await client.head("/health/live")).status_code == 200
            async with app.router.lifespan_context(app):
                model.gate.release(100)
                while (await client.get("/v1/health/ready")).status_code == 503:
                    await asyncio.sleep(0.01)
                assert (await client.get("/v1/health/live")).json() == {"status": "live"}
            assert (await client.get("/health/ready")).status_code == 503

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_log_has_the_reason_of_a_refusal_and_no_content(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline.serving")
    post(model="secret plans")
    post(temperature="secret plans")
    assert [vars(r)["error"] for r in caplog.records if r.message == "request"] == [
        "model_not_found model",
        "invalid_value temperature",
    ]
    assert "secret" not in str([vars(record) for record in caplog.records])


def test_the_log_shortens_field_names(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pipeline.serving")
    assert post(**{"x" * 10**6: 1}).status_code == 400
    (record,) = [r for r in caplog.records if r.message == "request"]
    assert vars(record)["error"] == ("unknown_parameter " + "x" * 200)[:200]


def test_a_model_that_fails_is_never_ready(app: Any, model: ListModel) -> None:
    model.error = RuntimeError("no such kernel")

    async def run() -> None:
        async with client_of(app) as client, app.router.lifespan_context(app):
            while "no such kernel" not in (status := (await client.get("/health/ready"))).text:
                await asyncio.sleep(0.01)
            assert status.status_code == 503

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_failing_model_is_a_server_error(post: Post, model: ListModel) -> None:
    model.error = RuntimeError("no such kernel")
    response = post()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    model.error = RuntimeError("no such kernel")
    streamed = post(stream=True).text.strip().split("\n\n")
    assert "no such kernel" in json.loads(streamed[-1].removeprefix("data: "))["error"]["message"]


def test_a_full_queue_is_429_and_starts_nothing(
    post: Post, model: ListModel, engine: BatchingEngine
) -> None:
    model.gated = True
    engine.room = 16  # or it would be refused as too large for an idle server
    response = post(n=16)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(response.headers["retry-after"]) > 0
    model.gated = False
    model.gate.release(1000)
    assert post().status_code == 200


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"path": "/v1/completions", "prompt": ["hi"] * 9}, "prompt"),
        ({"path": "/v1/completions", "prompt": ["hi"] * 3, "n": 3}, "prompt"),
        ({"n": 9}, "n"),
    ],
)
def test_more_choices_than_an_idle_server_holds_are_refused(
    post: Post, given: dict[str, Any], param: str
) -> None:
    response = post(**given)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert "are 9 choices, and this server holds at most 8" in error["message"]
    assert "retry-after" not in response.headers


def finished(app: Any) -> dict[str, float]:
    """Answers by how they ended, and how many are in the histogram of latencies."""
    text = get(app, "/metrics").text
    ends = re.findall(r'request_finish_total{finished_reason="(\w+)".*} (.*)', text)
    (timed,) = re.findall(r"(?m)^e2e_request_latency_seconds_count{.*} (.*)", text)
    return {**{reason: float(count) for reason, count in ends}, "timed": float(timed)}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_failures_are_not_counted_as_disconnected_clients(
    app: Any, post: Post, model: ListModel, stream: bool, n: int
) -> None:
    model.error = RuntimeError("no such kernel")
    post(stream=stream, n=n)
    assert finished(app) == {"error": n, "timed": 0}
    failures = re.findall(
        r'request_failure_total{.*status="(\d+)"} (.*)', get(app, "/metrics").text
    )
    assert failures == [("500", "1.0")]


@pytest.mark.parametrize(("stream", "status"), [(False, 504), (True, 200)])
def test_timeouts_are_counted_as_failures(
    engine: BatchingEngine, chat: Chat, model: ListModel, stream: bool, status: int
) -> None:
    limits = RequestLimits(header_bytes=9999, body_bytes=9999, body_seconds=9, request_seconds=0.2)
    app = create_app(engine, chat, model="bank", slots=4, middleware=MiddlewareStack(limits=limits))
    model.gated = True
    body = {"model": "bank", "messages": HELLO, "stream": stream}
    assert ask(app, "POST", "/v1/chat/completions", json=body).status_code == status
    assert finished(app) == {"error": 1, "timed": 0}
    assert 'request_failure_total{model_name="bank",status="504"} 1.0' in get(app, "/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_reported_in_responses_and_streams(
    app: Any,
    post: Post,
    model: ListModel,
    engine: BatchingEngine,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.error = RuntimeError("no such kernel")
    monkeypatch.setattr(engine, "down", lambda: "it is being started again")
    response = post(stream=stream)
    last = response.text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "engine_down"
    assert response.status_code == (200 if stream else 503)
    assert 'request_failure_total{model_name="bank",status="503"} 1.0' in get(app, "/metrics").text


def test_metrics_count_what_happened(app: Any, post: Post) -> None:
    usage = post(n=2).json()["usage"]
    post(max_tokens=2)
    post(foo=1)
    lines = get(app, "/metrics").text.splitlines()
    named = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    one = '{model_name="bank"}'
    prompt = 2 * usage["prompt_tokens"]  # n answers to one prompt read it once
    assert float(named["prompt_tokens_total" + one]) == pytest.approx(prompt)
    assert float(named["generation_tokens_total" + one]) == usage["completion_tokens"] + 2
    assert float(named["time_to_first_token_seconds_count" + one]) == 3
    assert float(named["time_per_output_token_seconds_count" + one]) == 3
    assert float(named["num_requests_running" + one]) == 0
    assert float(named["gpu_cache_usage_perc" + one]) == 0
    assert float(named["request_prompt_tokens_sum" + one]) == pytest.approx(prompt)
    assert float(named["request_generation_tokens_count" + one]) == 3
    phases = [f"request_{phase}_time_seconds" for phase in ("queue", "prefill", "decode")]
    assert [float(named[f"{phase}_count{one}"]) for phase in phases] == [3, 3, 3]
    in_all = sum(float(named[f"{phase}_sum{one}"]) for phase in phases)
    assert in_all <= float(named["e2e_request_latency_seconds_sum" + one]) < in_all + 0.1
    assert float(named["request_success_total" + one]) == 3
    ended = 'request_finish_total{finished_reason="%s",model_name="bank"}'
    assert float(named[ended % "stop"]) == 2
    assert float(named[ended % "length"]) == 1
    assert float(named['request_failure_total{model_name="bank",status="400"}']) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_slot(
    app: Any, model: ListModel, engine: BatchingEngine, stream: bool
) -> None:
    model.gated = True
    body = json.dumps({"model": "bank", "messages": HELLO, "stream": stream}).encode()
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        arrived = asyncio.Queue[dict[str, Any]]()
        arrived.put_nowait({"type": "http.request", "body": body})

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        answering = asyncio.create_task(app(scope, arrived.get, send))
        while engine.load()[:2] != (1, 0):
            await asyncio.sleep(0.005)
        arrived.put_nowait({"type": "http.disconnect"})
        await answering

    asyncio.run(asyncio.wait_for(run(), 20))
    model.gate.release(1)
    deadline = 1000
    while engine.load()[:2] != (0, 0) and deadline:
        deadline -= 1
        asyncio.run(asyncio.sleep(0.005))
    assert engine.load()[:2] == (0, 0)
    assert len(model.batches) <= 2
    assert 'request_success_total{model_name="bank"} 0.0' in get(app, "/metrics").text
    aborted = 'request_finish_total{finished_reason="abort",model_name="bank"} 1.0'
    assert aborted in get(app, "/metrics").text


def test_a_generative_model_makes_no_embeddings(app: Any, post: Post) -> None:
    response = post("/v1/embeddings", input="Hello")
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message.startswith("the model 'bank' generates text and has no /v1/embeddings: use /v1")


def test_the_openapi_description_has_only_openais_errors(app: Any) -> None:
    description = get(app, "/openapi.json").json()
    for path, middleware in description["paths"].items():
        for operation in middleware.values():
            assert set(operation["responses"]) == {"200", "4XX", "5XX"}, path
            schema = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


HALF = "\ud83d"  # of a pair that stands for an emoji


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {"model": HALF}, 404),
        ("/v1/chat/completions", {HALF: 1}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": HALF}]}, 400),
        ("/v1/chat/completions", {"messages": [{"role": HALF, "content": "x"}]}, 400),
        ("/v1/chat/completions", {"stop": HALF, "user": HALF}, 200),
        ("/v1/completions", {"prompt": HALF}, 400),
        ("/v1/completions", {"prompt": ["x", HALF]}, 400),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": HALF}, 400),
    ],
)
def test_halves_of_surrogate_pairs_break_nothing(
    post: Post, path: str, body: dict[str, Any], status: int
) -> None:
    response = post(path, raw={"json": {"model": "bank", "messages": HELLO, **body}})
    if path == "/v1/completions":
        response = post(path, **body)
    assert response.status_code == status
    response.json()


def test_drafts_are_counted_in_usage_and_metrics_and_stop_strings_cut_them(chat: Chat) -> None:
    """An answer that repeats the prompt is drafted; a stop string within a draft ends it."""
    text = "one two three four five six. " * 3
    messages = [{"role": "user", "content": text}]

    def answered(most: int, **body: Any) -> tuple[dict[str, Any], str]:
        model = ListModel(say(chat, text), max_seq_len=400)
        engine = BatchingEngine(model, max_input_len=300, max_queue=4, speculative_tokens=most)
        app = create_app(engine, chat, model="bank", slots=4, defaults={"temperature": 0})
        try:
            given = {"model": "bank", "messages": messages, "max_tokens": 100, **body}
            response = ask(app, "POST", "/v1/chat/completions", json=given)
            return response.json(), get(app, "/metrics").text
        finally:
            engine.close()

    for body in ({}, {"stop": ["x. one"]}, {"max_tokens": 7}, {"logprobs": True}, {"n": 2}):
        plain, _ = answered(0, **body)
        found, metrics = answered(8, **body)
        assert found["choices"] == plain["choices"]
        assert found["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
        assert "completion_tokens_details" not in plain["usage"]
        details = found["usage"]["completion_tokens_details"]
        right, wrong = (details[f"{kind}_prediction_tokens"] for kind in ("accepted", "rejected"))
        assert right > 0
        counted = re.findall(r"^(?:vllm:)?spec_decode_num_\w+_tokens_total\S* (\S+)", metrics, re.M)
        assert sorted(map(float, counted)) == sorted([right, right, right + wrong, right + wrong])
