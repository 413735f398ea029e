"""A real tritonserver with a model repository of ours, asked by NVIDIA's clients and by ours."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core.extras import EXTRAS
from pipeline.core.paths import ROOT
from pipeline.engines.base import EngineFailed, Guide, Sampling
from pipeline.engines.description import Description
from pipeline.engines.kserve.engine import KServeEngine
from pipeline.engines.kserve.messages import MESSAGES
from pipeline.engines.opening import open_engine
from pipeline.engines.profile import Profile
from pipeline.engines.record import BuildJob
from pipeline.engines.registry import ENGINES
from pipeline.engines.triton.arguments import POST, PRE, TOKENS, Settings
from pipeline.engines.triton.engine import TritonEngine
from pipeline.engines.triton.repository import REPOSITORY, VERSION, write_tensorrtllm, write_vllm
from pipeline.engines.triton.server import TritonServer
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from tests.unit.engines.hf.test_session import make_model
from tests.unit.engines.triton.cases import configured
from tests.unit.serving.asgi import ask_all

EXTRA = EXTRAS["triton"]
pytestmark = pytest.mark.skipif(bool(EXTRA.missing()), reason=f"needs {EXTRA.command}")
NAME, ENSEMBLE = "support", "ensemble"
PROMPT = [5, 6, 7]
LONG = 450  # tokens of an answer that nobody waits for


@dataclass(frozen=True)
class Running:
    """folder: what stage=build made, with an ensemble in its repository. triton: it runs that."""

    folder: Path
    triton: TritonEngine
    chat: Chat

    @property
    def server(self) -> TritonServer:
        return self.triton.server

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.server.http}"

    @property
    def grpc(self) -> str:
        return f"grpc://127.0.0.1:{self.server.grpc}"

    def engine(self, url: str = "", model: str = NAME + TOKENS) -> KServeEngine:
        described = Description.read(self.folder)
        return KServeEngine(url or self.grpc, model, {}, described, max_queue=99)

    def tokens(self, sampling: Sampling, url: str = "", model: str = NAME + TOKENS) -> list[int]:
        async def read() -> list[int]:
            engine = self.engine(url, model)
            stream = engine.generate(PROMPT, sampling)
            found = [token.id async for tokens in stream for token in tokens]
            engine.close()
            return found

        return asyncio.run(read())

    def clients(self, *arguments: str) -> Any:
        site = sysconfig.get_paths()["purelib"]
        command = [str(EXTRA.python), str(ROOT / "tests/triton_clients.py"), site, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    def generate(self, model: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.http}/v2/models/{model}/generate", json=body, timeout=60)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("triton")
    model = make_model(folder / "model")
    settings = configured(
        model=NAME,
        engine="hf",
        config={"text": {"max_batch_size": 64}},
        server=["--model-control-mode=explicit", "--load-model=*"],
    )
    out = folder / "build"
    out.mkdir()
    profile = Profile("hf", "fp32", 1, 0, False, "hf")
    record, inner = ENGINES["triton"], ENGINES["hf"]
    job = BuildJob(record, settings, profile, model, folder, list, behind=inner)
    record.build(job, out)
    chat = Chat.load(model)
    add_ensemble(out / REPOSITORY, chat)
    engine = open_engine(out, max_queue=99).engine
    assert isinstance(engine, TritonEngine)
    yield Running(out, engine, chat)

    async def close() -> None:
        engine.close()

    asyncio.run(close())


def add_ensemble(repository: Path, chat: Chat) -> None:
    """TensorRT-LLM's repository, with our model of the same tensors where its engine would be."""
    settings = Settings("tensorrtllm", "trtllm", ENSEMBLE)
    write_tensorrtllm(repository, settings, 4, chat.stop_ids)
    for part in (PRE, POST):
        chat.save(repository / (ENSEMBLE + part) / VERSION / "tokenizer")
    shutil.rmtree(repository / (ENSEMBLE + TOKENS))
    config = repository / ENSEMBLE / "config.pbtxt"
    config.write_text(config.read_text().replace(ENSEMBLE + TOKENS, NAME + TOKENS))


def test_nemos_query_clients_get_the_engines_answers(running: Running) -> None:
    found = running.clients("nemo", running.http, running.grpc, NAME)
    chat = running.chat

    def said(prompt: list[int], length: int) -> str:
        async def read() -> list[int]:
            engine = running.engine()
            how = Sampling(length, temperature=0, stop_ids=frozenset(chat.stop_ids))
            tokens = [t.id async for ts in engine.generate(prompt, how) for t in ts]
            engine.close()
            return tokens

        return chat.decode(asyncio.run(read()))

    plain = said(chat.encode("The bank"), 8)
    asked = chat.prompt([{"role": "user", "content": "How do I order checks?"}])
    for answers in found.values():
        assert answers["NemoQueryLLM"] == [[plain], [said(chat.encode("Hello"), 8)]]
        assert answers["NemoQueryTRTLLMAPI"] == [[plain]]
        for name in ("NemoQueryLLMHF", "NemoQueryvLLM"):
            assert answers[name]["choices"][0]["text"] == [[plain]]
        choice = answers["NemoQueryLLMPyTorch"]["choices"][0]
        assert choice["text"] == [[said(asked, 8)]]
        (probabilities,) = choice["logprobs"]["token_logprobs"]
        (tops,) = choice["logprobs"]["top_logprobs"]
        assert len(tops) == len(probabilities)
        assert all(p < 0 for p in probabilities)
        assert [max(top.values()) for top in tops] == pytest.approx(probabilities)
        echo = answers["echo"]["choices"][0]
        assert echo["text"][0][0].startswith("The bank")
        assert len(echo["logprobs"]["token_logprobs"][0]) > 4
        assert "no_repeat_ngram_size is not supported" in answers["refused"]


def test_grpc_and_http_stream_what_the_engine_says(running: Running) -> None:
    how = Sampling(12, temperature=0)
    inside = running.folder / REPOSITORY / (NAME + TOKENS) / VERSION / "engine"

    async def directly() -> list[int]:
        engine = open_engine(inside, max_queue=9, in_process=True).engine
        found = [t.id async for ts in engine.generate(PROMPT, how) for t in ts]
        engine.close()
        return found

    wanted = asyncio.run(directly())
    assert running.tokens(how) == running.tokens(how, f"{running.http}/v2") == wanted


def test_clients_of_tensorrt_llm_get_the_same_tokens(running: Running) -> None:
    found = running.clients("tensorrt_llm", running.grpc, NAME + TOKENS)
    assert found["ids"] == running.tokens(Sampling(6, temperature=0, stop_ids=frozenset({0})))
    assert "request_output_len is missing" in found["refused"]


def test_the_ensemble_of_tensorrt_llms_repository_answers(running: Running) -> None:
    body = {"text_input": "The bank", "max_tokens": 8}
    text = running.generate(ENSEMBLE, **body).json()["text_output"]
    assert text == running.generate(NAME, **body).json()["text_output"]


def test_texts_stream_piece_by_piece(running: Running) -> None:
    body = {"text_input": "The bank", "max_tokens": 8, "stream": True}
    url = f"{running.http}/v2/models/{NAME}_stream/generate_stream"
    lines = httpx.post(url, json=body, timeout=60).text.splitlines()
    pieces = [json.loads(line[5:])["text_output"] for line in lines if line.startswith("data:")]
    whole = running.generate(NAME, text_input="The bank", max_tokens=8).json()["text_output"]
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    stop = running.generate(NAME, text_input="The bank", max_tokens=8, stop_words=pieces[1])
    assert stop.json()["text_output"] == whole[: whole.index(pieces[1])]


def test_a_client_that_leaves_frees_its_place(running: Running) -> None:
    stats = f"{running.http}/v2/models/{NAME}{TOKENS}/stats"

    def longest() -> int:
        """Responses of the longest answer so far."""
        return len(httpx.get(stats).json()["model_stats"][0]["response_stats"])

    async def leave() -> None:
        engine = running.engine()
        stream = engine.generate(PROMPT, Sampling(LONG, temperature=0))
        async for _ in stream:
            break
        stream.cancel()
        assert engine.load().running == 0
        engine.close()

    asyncio.run(leave())
    time.sleep(1)  # more than its rest would take
    assert longest() < LONG - 10


def test_what_is_wrong_is_refused_and_the_next_request_answered(running: Running) -> None:
    async def refused(sampling: Sampling, prompt: list[int], said: str) -> None:
        engine = running.engine()
        with pytest.raises(ValueError, match=said):
            async for _ in engine.generate(prompt, sampling):
                pass
        engine.close()

    asyncio.run(refused(Sampling(2), [10**6], "vocabulary ends at"))
    asyncio.run(refused(Sampling(2, guide=Guide("regex", "(")), PROMPT, "not valid"))
    answer = running.generate(NAME, max_tokens=3)
    assert answer.status_code >= 400
    assert "send either prompts or text_input" in answer.text
    two = {"name": "prompts", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]}
    infer = f"{running.http}/v2/models/{NAME}/infer"
    answer = httpx.post(infer, json={"inputs": [two]}, timeout=30)
    assert "[1, 2]: send one text for each prompt" in answer.text
    ids = {"name": "prompts", "shape": [1, 1], "datatype": "INT32", "data": [1]}
    answer = httpx.post(infer, json={"inputs": [ids]}, timeout=30)
    assert answer.status_code == 400
    assert "prompts" in answer.text
    assert running.tokens(Sampling(2, temperature=0))


def test_readiness_metrics_and_loading(running: Running) -> None:
    assert httpx.get(f"{running.http}/v2/health/ready").status_code == 200
    ready = f"{running.http}/v2/models/{ENSEMBLE}{POST}/ready"
    control = f"{running.http}/v2/repository/models/{ENSEMBLE}{POST}"
    assert httpx.get(ready).status_code == 200
    assert httpx.post(f"{control}/unload", json={}, timeout=30).status_code == 200
    end = time.monotonic() + 20
    while httpx.get(ready).status_code == 200 and time.monotonic() < end:
        time.sleep(0.1)
    assert httpx.get(ready).status_code == 400
    assert httpx.post(f"{control}/load", json={}, timeout=60).status_code == 200
    assert httpx.get(ready).status_code == 200
    text = httpx.get(f"http://127.0.0.1:{running.server.metrics}/metrics").text
    assert f'nv_inference_request_success{{model="{NAME}{TOKENS}"' in text


def test_openai_clients_reach_it_through_our_server(running: Running) -> None:
    remote = {"base_url": running.grpc, "model": NAME + TOKENS}
    engine = ENGINES["remote"]
    described = engine.elsewhere(configured("remote", **remote), running.chat)  # type: ignore[misc]
    asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6}

    app = create_app(engine.open(running.folder, described, 9), running.chat, model="m", slots=4)
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "empty", "schema": schema}}
    answers = ask_all(
        app,
        *(
            ("POST", "/v1/chat/completions", {"json": {"model": "m", **asked, **more}})
            for more in ({"logprobs": True, "temperature": 0}, {"response_format": form})
        ),
    )
    first, second = (answer.json()["choices"][0] for answer in answers)
    assert first["logprobs"]["content"]
    assert first["message"]["content"]
    assert json.loads(second["message"]["content"]) == {}


def test_our_messages_are_tritonclients() -> None:
    site = sysconfig.get_paths()["purelib"]
    script = str(ROOT / "tests/triton_clients.py")
    done = subprocess.run(
        [str(EXTRA.python), script, site, "described"], capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    for name, fields in MESSAGES.items():
        for field, (number, _) in fields.items():
            assert theirs[name][field] == number, f"{name}.{field}"


def test_tritons_own_message_reads_every_config(running: Running, tmp_path: Path) -> None:
    write_tensorrtllm(tmp_path, Settings("tensorrtllm", "trtllm", "a"), 4, [2])
    write_vllm(tmp_path, Settings("vllm", "vllm", "b"), running.folder, {"dtype": "bfloat16"})
    places = (running.folder / REPOSITORY, tmp_path)
    files = [str(file) for place in places for file in sorted(place.glob("*/config.pbtxt"))]
    found = running.clients("configs", *files)
    assert len(found) == 11
    for file, config in found.items():
        assert config["name"] == Path(file).parent.name


def test_a_server_that_dies_is_started_again(running: Running) -> None:
    """The last of those that ask it."""
    engine = running.triton

    async def scenario() -> None:
        first, end = engine.server.pid, time.monotonic() + 120
        os.kill(first, signal.SIGKILL)
        while engine.down() is None and time.monotonic() < end:
            await asyncio.sleep(0.05)
        with pytest.raises(EngineFailed, match="does not answer"):
            engine.generate(PROMPT, Sampling(1))
        while engine.down() is not None and time.monotonic() < end:
            await asyncio.sleep(0.1)
        assert engine.server.pid != first
        stream = engine.generate(PROMPT, Sampling(3, temperature=0))
        assert [t.id async for ts in stream for t in ts]

    asyncio.run(scenario())
