"""The real engine behind the real server, asked by OpenAI's own client."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import psutil
import pytest
from openai import OpenAI
from safetensors.numpy import save_file

from pipeline.config.schema import Config, load
from pipeline.core.artifact import Artifact
from pipeline.core.paths import ROOT
from pipeline.data.dataset import Row, write_split
from pipeline.engines.description import Description
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.serving.server_process import RunningServer, running_server
from pipeline.stages import build
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import make_model_folder

QNEMO = {"dtype": "bfloat16", "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}}
QUESTIONS = [
    f"What does it cost to {what}?" for what in ("wire", "lend", "save", "pay", "ask", "go")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def inputs(folder: Path) -> dict[str, Artifact]:
    """A random Llama, large enough that its answers differ, and an export without weights."""
    model = make_model_folder(folder / "merge", "demo")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "vocab_size": Chat.load(model).vocab_size,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 4,
    }
    (model / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(3)
    tensors = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else random.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in read_shape(model).tensors()
    }
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (folder / "prepare").mkdir()
    ids = [random.integers(5, config["vocab_size"], 40).tolist() for _ in range(8)]
    write_split(
        folder / "prepare", "validation", [Row([], row, [0] * 20 + [1] * 20, "") for row in ids]
    )
    return {
        "prepare": make_artifact(folder, "prepare", "dataset", files={"x": ""}),
        "merge": make_artifact(folder, "merge", "hf_checkpoint"),
        "export": make_artifact(
            folder, "export", "exported", files={"qnemo/config.json": json.dumps(QNEMO)}
        ),
    }


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    tree = compose(["engine=onnxruntime", "engine.precision=fp32", f"artifacts={folder}"])
    tree["benchmark"] |= {"concurrency": [1, 4], "requests": 8, "max_tokens": 8}
    return load(tree)


@pytest.fixture(scope="module")
def engine(config: Config, inputs: dict[str, Artifact], folder: Path) -> Artifact:
    (folder / "build").mkdir()
    outcome = build.run(config, inputs, folder / "build")
    assert outcome.proof["same_answers"] == 1
    assert outcome.proof["loss"] < 1e-8
    return make_artifact(folder, "build", "engine", files={"proof.json": "{}"})


@pytest.fixture(scope="module")
def server(engine: Artifact, folder: Path) -> Iterator[RunningServer]:
    with running_server(engine.path, model="bank", log=folder / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="none", max_retries=0)


def ask(client: OpenAI, question: str, **settings: object) -> str:
    answer = client.chat.completions.create(
        model="bank",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=24,
        **settings,  # type: ignore[call-overload]
    )
    return answer.choices[0].message.content


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_smaller_engines_stay_close_to_pytorch(
    config: Config, inputs: dict[str, Artifact], tmp_path: Path, precision: str
) -> None:
    chosen = config.engine.model_copy(update={"precision": precision})
    outcome = build.run(config.model_copy(update={"engine": chosen}), inputs, tmp_path)
    assert outcome.proof["loss"] > 1e-7, "the weights were not quantized"
    assert outcome.proof["exact_loss"] < 1e-8
    assert Description.read(tmp_path).precision == precision
    smaller = {"int8": 0.6, "int4": 0.5}[precision]
    full = 4 * sum(int(np.prod(shape)) for _, shape in read_shape(inputs["merge"].path).tensors())
    assert outcome.metrics["engine_mib"] * 2**20 < smaller * full + 100_000


def test_genais_own_library_opens_the_engine_and_says_the_same(
    engine: Artifact, client: OpenAI
) -> None:
    import onnxruntime_genai as genai

    chat = Chat.load(engine.path)
    prompt = chat.prompt([{"role": "user", "content": QUESTIONS[0]}])
    model = genai.Model(str(engine.path))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + 24, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array(prompt, np.int32))
    tokens: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    assert chat.decode(tokens) == ask(client, QUESTIONS[0])


def test_a_stream_and_a_whole_answer_are_the_same(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="bank",
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ask(client, QUESTIONS[0])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


def test_answers_given_at_once_are_those_given_alone(client: OpenAI) -> None:
    alone = [ask(client, question) for question in QUESTIONS]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(len(QUESTIONS) * 3) as pool:
        together = list(pool.map(lambda question: ask(client, question), QUESTIONS * 3))
    assert together == alone * 3


def test_a_seed_gives_the_same_answer_again(client: OpenAI) -> None:
    def draw(seed: int) -> str:
        return client.chat.completions.create(
            model="bank",
            messages=[{"role": "user", "content": QUESTIONS[0]}],
            seed=seed,
            temperature=1,  # the engine's own default is the likeliest token
            max_tokens=16,
            extra_body={"top_k": 50},
        ).choices[0].message.content or ""  # fmt: skip

    assert draw(5) == draw(5)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_completions_and_models(client: OpenAI, engine: Artifact) -> None:
    prompt = Chat.load(engine.path).prompt([{"role": "user", "content": QUESTIONS[0]}])
    answer = client.completions.create(model="bank", prompt=prompt, temperature=0, max_tokens=24)
    assert answer.choices[0].text == ask(client, QUESTIONS[0])
    assert [model.id for model in client.models.list()] == ["bank"]


def test_refusals_are_the_clients_own_exceptions(client: OpenAI) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt", messages=hello)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="384 tokens"):
        client.chat.completions.create(model="bank", messages=hello, max_tokens=999)  # type: ignore[arg-type]


def test_an_answer_keeps_to_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"fee": {"type": "integer", "maximum": 99}, "unit": {"enum": ["USD", "EUR"]}},
        "required": ["fee", "unit"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="bank",
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        temperature=2,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "fee", "schema": schema}},
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert set(value) == {"fee", "unit"}
    assert value["fee"] <= 99
    with pytest.raises(openai.BadRequestError, match="the regular expression is not valid"):
        client.chat.completions.create(
            model="bank",
            messages=[{"role": "user", "content": QUESTIONS[0]}],
            stream=True,
            extra_body={"guided_regex": "("},
        )


def test_tokens_are_as_likely_when_read_as_when_generated(client: OpenAI, engine: Artifact) -> None:
    ids = Chat.load(engine.path).prompt([{"role": "user", "content": QUESTIONS[0]}])

    def tops(prompt: list[int], **how: object) -> list[dict[str, float]]:
        answer = client.completions.create(
            model="bank",
            prompt=prompt,
            temperature=0,
            logprobs=5,
            **how,  # type: ignore[call-overload]
        )
        return answer.choices[0].logprobs.top_logprobs

    read = tops(ids, max_tokens=0, echo=True)
    assert read[0] is None
    for place in (1, len(ids) // 2, len(ids) - 1):
        (generated,) = tops(ids[:place], max_tokens=1)
        shared = {text: read[place][text] for text in generated}
        assert shared == pytest.approx(generated, abs=1e-3)


def serve(folder: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", "stage=serve", f"artifacts={folder}"]
    return subprocess.Popen(
        [*command, f"serve.port={port}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def wait_until_ready(port: int) -> OpenAI:
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    deadline = time.monotonic() + 60
    while True:
        try:
            client.get("/health/ready", cast_to=object)
            return client
        except openai.OpenAIError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


# So many choices that they take seconds, in which more is asked.
@pytest.mark.parametrize(
    ("stop", "streams", "choices"), [(signal.SIGINT, 4, 16), (signal.SIGTERM, 50, 4)]
)
def test_a_signal_ends_the_server_well_and_cuts_no_answer(
    engine: Artifact, folder: Path, stop: signal.Signals, streams: int, choices: int
) -> None:
    port = free_port()
    process = serve(folder, port)
    try:
        client = wait_until_ready(port)
        (model,) = client.models.list()
        begun, ends = threading.Barrier(streams + 1), []

        def start(max_tokens: int) -> openai.Stream:
            return client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=max_tokens,
                n=choices,
                extra_body={"temperature": 2, "ignore_eos": True},
                stream=True,
            )

        def read() -> None:
            stream = start(300)
            next(iter(stream))
            begun.wait(60)
            ends.append([chunk.choices[0].finish_reason for chunk in stream][-1])

        threads = [threading.Thread(target=read) for _ in range(streams)]
        for thread in threads:
            thread.start()
        begun.wait(60)
        os.killpg(process.pid, stop)  # all its processes, as a terminal and systemd do
        while b"shutting down" not in httpx.get(f"http://127.0.0.1:{port}/health/ready").content:
            time.sleep(0.01)
        with pytest.raises(openai.InternalServerError) as refused:
            start(1)
        assert refused.value.status_code == 503
        assert refused.value.code == "shutting_down"
        said = process.communicate(timeout=300)[1]
        for thread in threads:
            thread.join(30)
        assert len(ends) == streams
        assert set(ends) == {"length"}
        assert process.returncode == 0
        assert "all answers in progress were finished" in said
        assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in said
        lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert [line["message"] for line in lines[:2]] == ["loading", "ready"]
        answered = [line for line in lines if line.get("finish_reasons") == ["length"] * choices]
        assert len({line["request_id"] for line in answered}) >= streams
    finally:
        process.kill()


def test_clients_that_hang_up_lose_no_slot(server: RunningServer) -> None:
    def leave(client: OpenAI, after: int) -> None:
        stream = client.chat.completions.create(
            model="bank",
            messages=[{"role": "user", "content": QUESTIONS[0]}],
            max_tokens=300,
            extra_body={"temperature": 2},
            stream=True,
        )
        for _ in zip(range(after), stream, strict=False):
            pass
        stream.close()

    def gauges() -> dict[str, float]:
        text = client.get("/metrics", cast_to=httpx.Response).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name.partition("{")[0]: float(value) for name, value in lines}

    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        with ThreadPoolExecutor(30) as pool:
            list(pool.map(lambda after: leave(client, after), [1, 2, 5] * 20))
        deadline = time.monotonic() + 30
        of_slots = "num_requests_running", "num_requests_waiting", "gpu_cache_usage_perc"
        while any(gauges()[name] for name in of_slots):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(client, QUESTIONS[0])


def engine_processes(server: RunningServer) -> list[psutil.Process]:
    """Children of the server that run an engine: it also has some that try guides."""
    children = psutil.Process(server.pid).children()
    return [child for child in children if "pipeline.engines.process.worker" in child.cmdline()]


def test_an_engine_process_killed_under_load_costs_its_answers_and_not_the_server(
    server: RunningServer,
) -> None:
    ready = f"{server.url}/health/ready"
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        before = [ask(client, question) for question in QUESTIONS]
        (process,) = engine_processes(server)
        process.suspend()  # so that no answer is over before

        def begin(stream: bool) -> Exception | None:
            try:
                answer = client.chat.completions.create(
                    model="bank",
                    messages=[{"role": "user", "content": QUESTIONS[0]}],
                    max_tokens=300,
                    stream=stream,
                )
                for _ in answer if stream else ():
                    pass
            except openai.APIError as error:
                return error
            return None

        with ThreadPoolExecutor(8) as pool:
            errors = [pool.submit(begin, stream=i % 2 == 0) for i in range(8)]
            deadline = time.monotonic() + 30
            while not _metric(client, "num_requests_running").endswith(" 8.0"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            while (answer := httpx.get(ready)).status_code == 200:
                assert time.monotonic() < deadline
            assert "is being restarted" in answer.text
            found = [error.result() for error in errors]
        for error in found:
            assert isinstance(error, openai.APIError)
            assert "exit code -9" in error.message
            assert error.body["type"] == "server_error"  # type: ignore[index]
        assert {getattr(error, "status_code", None) for error in found} == {None, 503}
        while httpx.get(ready).status_code != 200:
            assert time.monotonic() < deadline + 30
            time.sleep(0.05)
        assert [ask(client, question) for question in QUESTIONS] == before


def _metric(client: OpenAI, name: str) -> str:
    text = client.get("/metrics", cast_to=httpx.Response).text
    return next(line for line in text.splitlines() if line.startswith(name))


def test_a_port_in_use_is_refused_at_once(engine: Artifact, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        process = serve(folder, port)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 8
    assert f"port {port} of 127.0.0.1 is in use" in said
    assert "serve.port=0" in said


def test_adapters_for_an_engine_that_takes_none_are_refused(
    engine: Artifact, tmp_path: Path
) -> None:
    for adapters, words in ((tmp_path / "none", "is not a folder"), (tmp_path, "engine.name=hf")):
        command = [sys.executable, "-m", "pipeline.serving", "--model", "bank"]
        command += ["--engine", str(engine.path), "serve.port=0", f"serve.adapters={adapters}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 2
        assert words in ended.stderr


def test_an_engine_of_another_version_is_refused(engine: Artifact, tmp_path: Path) -> None:
    files = {p.name: p.read_bytes() for p in engine.path.iterdir() if p.name != "manifest.json"}
    make_artifact(tmp_path, "build", "engine", files=files)
    replace(Description.read(engine.path), version="1.0.0").write(tmp_path / "build")
    (tmp_path / "build" / "manifest.json").unlink()
    make_artifact(tmp_path, "build", "engine", files={"x": ""})
    process = serve(tmp_path, free_port())
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 4
    assert "built with onnxruntime 1.0.0" in said
    assert os.fspath(tmp_path / "build") in said
