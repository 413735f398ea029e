"""Two folders that share nothing but an S3 server and an MLflow server with PostgreSQL: what is
registered in one is served in the other, which changes over as champion moves, without a lost
request."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import mlflow
import numpy as np
import pytest
from cryptography.fernet import Fernet
from mlflow import MlflowClient
from mlflow.entities.webhook import Webhook, WebhookEvent
from mlflow.pyfunc import scoring_server
from moto.server import ThreadedMotoServer
from safetensors.numpy import save_file

from pipeline.config.defaults import default_config
from pipeline.config.schema import Config
from pipeline.config.tracking import TrackingConfig
from pipeline.core.artifact import open_artifact
from pipeline.core.paths import ROOT
from pipeline.data.dataset import Row, write_split
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from pipeline.serving.versions import VERSION_HEADER
from pipeline.stages import build, canary, pull, register, rollback
from pipeline.tracking import client as tracking
from pipeline.tracking.mlflow_sender import Sender
from pipeline.tracking.outbox import Destination
from tests.haproxy import free_port, haproxy, needs_haproxy
from tests.made_artifacts import make_artifact, make_chain
from tests.postgres_server import needs_postgres, postgres
from tests.unit.model_folders import make_model_folder

pytestmark = needs_postgres
SECRET = "a secret of webhooks"
QNEMO = {"dtype": "bfloat16", "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}}
ASKED = {
    "model": "bank", "max_tokens": 3,
    "messages": [{"role": "user", "content": "What does it cost to wire?"}],
}  # fmt: skip


@contextmanager
def running(command: list[str], folder: Path, ready: str, **environment: str) -> Iterator[Path]:
    """A process, once its URL answers; the file of its output."""
    log = folder / f"{Path(command[2]).name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, stdout=stream, stderr=stream,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(1200):
            try:
                if httpx.get(ready, timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        else:
            raise AssertionError(log.read_text())
        yield log
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # a worker of MLflow's outlives its parent
        process.wait()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """S3 and MLflow, in the environment; MLflow's address."""
    folder = tmp_path_factory.mktemp("mlflow")
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    uri = f"http://127.0.0.1:{free_port()}"
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
        "MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": "",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "0", "SERVE_WEBHOOK_SECRET": SECRET,
    }  # fmt: skip
    command = ["-m", "mlflow", "server", "--workers", "1", "--port", uri.rpartition(":")[2]]
    command += ["--artifacts-destination", "files", "--backend-store-uri"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="models")
        mlflow.set_tracking_uri(uri)
        with (
            postgres(free_port()) as database,
            running([*command, database], folder, f"{uri}/health"),
        ):
            yield uri
    moto.stop()


def configured(artifacts: Path, **settings: Any) -> Config:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return default_config(
        {
            "artifacts": str(artifacts), "model.name": "bank", "register.name": "bank",
            "register.store": "s3://models/bank", "engine": "onnxruntime",
            "engine.precision": "fp32", "engine.max_seq_len": 128, "engine.max_input_len": 96,
            **named,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an engine of a tiny Llama with random weights."""
    folder = tmp_path_factory.mktemp("model")
    model = make_model_folder(folder / "merge", "demo")
    rows = Chat.load(model).vocab_size
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "hidden_act": "silu", "vocab_size": rows,
        "max_position_embeddings": 256, "tie_word_embeddings": False, "bos_token_id": 0,
        "eos_token_id": 4,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(3)
    shapes = read_shape(model).tensors()
    tensors = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (folder / "prepare").mkdir()
    ids = [random.integers(5, rows, 40).tolist() for _ in range(4)]
    checked = [Row([], row, [0] * 20 + [1] * 20, "") for row in ids]
    write_split(folder / "prepare", "validation", checked)
    inputs = {
        "prepare": make_artifact(folder, "prepare", "dataset", files={"x": ""}),
        "merge": make_artifact(folder, "merge", "hf_checkpoint"),
        "export": make_artifact(
            folder, "export", "exported", files={"qnemo/config.json": json.dumps(QNEMO)}
        ),
    }
    (folder / "build").mkdir()
    build.run(configured(folder), inputs, folder / "build")
    files = [file for file in (folder / "build").rglob("*") if file.is_file()]
    return {str(file.relative_to(folder / "build")): file.read_bytes() for file in files}


def register_version(folder: Path, built: dict[str, bytes], right: int) -> None:
    """What training in a folder ends with: a version with an engine that answers so many of 130
    questions right, and that differs from the others in one file."""
    artifacts = folder / "artifacts"
    shutil.rmtree(artifacts, ignore_errors=True)
    scores = [1.0] * right + [0.0] * (130 - right)
    chain = make_chain(artifacts, built={**built, "note": str(right)}, served=scores)
    inputs = {stage: artifact for stage, artifact in chain.items() if stage != "import"}
    settings = TrackingConfig(enabled=True, uri=None, experiment="bank", upload_weights=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Destination, "ensure_sender", lambda self: None)
        run = tracking.start_stage(
            artifacts, stage="register", config=settings, params={}, inputs={}
        )
        (artifacts / "register").mkdir()
        outcome = register.run(configured(artifacts), inputs, artifacts / "register")
        run.finish("FINISHED", make_artifact(artifacts, "register", outcome.kind, files={}))
        tracking.wait_until_sent(artifacts, settings, timeout=0)
        assert not Sender(Destination.of(artifacts, settings)).send_all()


class Load:
    """Clients that ask a server all the time. seen: answers by version; lost: those that failed."""

    def __init__(self, url: str) -> None:
        self._url, self._ended = url, False
        self.seen: Counter[str] = Counter()
        self.lost: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._ended:
                try:
                    answer = client.post(f"{self._url}/v1/chat/completions", json=ASKED)
                    answer.raise_for_status()
                    self.seen[answer.headers[VERSION_HEADER]] += 1
                    time.sleep(0.02)
                except Exception as error:
                    self.lost.append(repr(error))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()

    def until(self, version: str) -> None:
        """Wait until a version answers, and the others no more."""
        deadline, before = time.monotonic() + 240, self.seen[version]
        while self.seen[version] < before + 5:
            assert not self.lost
            assert time.monotonic() < deadline, (self.seen, self.lost)
            time.sleep(0.02)


def create_webhook(url: str, secret: str) -> Webhook:
    """Have MLflow's server call the model's server when an alias moves."""
    events = [WebhookEvent("model_version_alias", "created")]
    address = f"{url}/webhooks/mlflow"
    return MlflowClient().create_webhook("bank", address, events, secret=secret)


@dataclass
class Following:
    """A server that follows champion, and would look at the registry only after an hour: MLflow's
    webhooks wake it. trained, served: the two folders, which share nothing but the stores."""

    url: str
    trained: Path
    served: Path
    log: Path

    @property
    def changes(self) -> list[tuple[int, int]]:
        """Which versions it changed from and to."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        said = [json.loads(line) for line in lines]
        return [(d["was"], d["version"]) for d in said if d["message"] == "changed over"]


@pytest.fixture(scope="module")
def following(
    stores: str, built: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Following]:
    folder = tmp_path_factory.mktemp("folders")
    trained, served = folder / "trained", folder / "served"
    served.mkdir()
    register_version(trained, built, 100)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = ["-m", "pipeline", "stage=serve", "serve.follow=champion", "serve.follow_seconds=3600"]
    words += ["model.name=bank", f"serve.port={port}"]
    with running(words, served, f"{url}/v1/health/ready") as log:
        yield Following(url, trained, served, log)


def test_from_one_folder_to_a_server_in_another_and_back(
    following: Following, built: dict[str, bytes], tmp_path: Path
) -> None:
    url, served = following.url, following.served
    config = configured(served / "artifacts")
    client = MlflowClient()
    with Load(url) as load:
        load.until("1")
        webhook = create_webhook(url, SECRET)
        register_version(following.trained, built, 110)  # it is better, so it becomes champion
        load.until("2")
        client.delete_webhook(webhook.webhook_id)

        wrong = create_webhook(url, "another secret")
        assert client.test_webhook(wrong.webhook_id).response_status == 401
        rollback.run(config)  # champion is version 1, and the server does not believe the message
        client.delete_webhook(wrong.webhook_id)
        before = load.seen["1"]
        load.until("2")
        assert load.seen["1"] == before

        create_webhook(url, SECRET)
        client.set_registered_model_alias("bank", "champion", "1")
        load.until("1")
        card = httpx.get(f"{url}/v1/models").json()["data"][0]
        assert (card["id"], card["version"]) == ("bank", "1")
        metrics = httpx.get(f"{url}/metrics").text
        assert 'request_success_total{model_name="bank",model_version="2"}' in metrics
    assert not load.lost
    assert following.changes == [(1, 2), (2, 1)]
    pulled = list((served / "artifacts/.variants").glob("build-*"))
    assert len(pulled) == 2
    assert all(open_artifact(folder, stage="build", reread=True) for folder in pulled)

    settings = {"register__version": "champion", "pull__to": str(tmp_path / "x")}
    pull.run(configured(served / "artifacts", **settings))
    assert open_artifact(tmp_path / "x", stage="build").manifest.files["note"]


@needs_haproxy
def test_a_canary_starts_a_version_and_promotes_it_and_the_server_follows(
    following: Following, built: dict[str, bytes], tmp_path: Path
) -> None:
    """The candidate and the server pull into the same folder. A rollback by hand ends it."""
    url, served = following.url, following.served
    register_version(following.trained, built, 98)  # no better than champion: only a candidate
    client = MlflowClient()
    number = client.get_model_version_by_alias("bank", "candidate").version
    before = client.get_model_version_by_alias("bank", "champion").version
    assert number != before
    create_webhook(url, SECRET)
    given = {
        "register__version": "candidate", "canary__stable": url, "canary__share": 0.5,
        "canary__error_margin": 0.3, "canary__slow_margin": 0.6, "canary__baseline": 20,
        "canary__every": 0.2, "canary__seconds": 120,
    }  # fmt: skip
    port = int(url.rpartition(":")[2])
    with haproxy(tmp_path, port, free_port()) as proxy, Load(proxy.url) as load:
        config = configured(
            served / "artifacts", canary__haproxy__socket=str(proxy.socket), **given
        )
        canary.run(config)
        assert client.get_model_version_by_alias("bank", "champion").version == number
        assert httpx.get(f"{url}/v1/version").json()["model_version"] == number
        rollback.run(config)
        load.until(before)
    assert not load.lost
    assert load.seen[number] > 20
    assert following.changes[-2:] == [(int(before), int(number)), (int(number), int(before))]
    said = client.get_model_version("bank", number).tags["canary"]
    assert said.startswith("promoted ")
    (report,) = (served / "artifacts/canary").glob("*/report.html")
    assert f"version {number} beside version {before}" in report.read_text()


def test_mlflow_loads_a_version_chat_in_chat_out(
    stores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the test above, whose folder is no longer where the version says: it is pulled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = mlflow.pyfunc.load_model("models:/bank@champion")
    answer = loaded.predict({"messages": ASKED["messages"], "max_tokens": 3, "temperature": 0.0})
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 3
    asked = json.dumps({"messages": ASKED["messages"], "max_tokens": 3, "temperature": 0.0})
    # What `mlflow models serve` answers with.
    schema = loaded.metadata.get_input_schema()
    found = scoring_server.invocations(asked, "application/json", loaded, schema)
    assert json.loads(found.response)["choices"] == answer["choices"]
