"""The outbox is sent to a real MLflow completely and once: also if the sender is killed at any
point, and if the server is unreachable. Each test copies one migrated SQLite store."""

import errno
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.models import Model

from pipeline.config.schema import Config
from pipeline.config.tracking import TrackingConfig
from pipeline.core.errors import ArtifactError
from pipeline.deployment.pull import engine_of
from pipeline.engines.registered import champion_of, engine_with
from pipeline.orchestration import compose
from pipeline.stages import register
from pipeline.tracking import client as tracking
from pipeline.tracking import mlflow_versions, outbox
from pipeline.tracking.mlflow_sender import PARENT, SENT, STAGE, Sender
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import versions_in
from tests.made_artifacts import make_artifact, make_chain

ROOT = Path(outbox.__file__).parents[2]
CONFIG = TrackingConfig(enabled=True, uri=None, experiment="bank", upload_weights=False)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store; creating its tables takes seconds."""
    destination = Destination.of(tmp_path_factory.mktemp("store"), CONFIG)
    Sender(destination).client.search_experiments()
    return destination.artifacts / "mlflow"


@pytest.fixture
def artifacts(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", outbox.OWNER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(migrated, tmp_path / "mlflow")
    monkeypatch.chdir(tmp_path.parent)  # the store's paths are relative to it
    return tmp_path


@pytest.fixture
def no_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test sends by itself, in this process."""
    monkeypatch.setattr(Destination, "ensure_sender", lambda self: None)


def track(artifacts: Path, stage: str, points: int = 0, **others: Any) -> None:
    """One finished stage run with `points` live figures."""
    inputs = others.pop("inputs", {})
    run = tracking.start_stage(
        artifacts, stage=stage, config=CONFIG, params={"seed": 1, stage: {"x": 2}}, inputs=inputs
    )
    for step in range(points):
        tracking.log_metrics({"train/loss": 1 / (1 + step)}, step=step)
    kind = others.pop("kind", "nemo_adapter")
    run.finish("FINISHED", make_artifact(artifacts, stage, kind, inputs=inputs, **others))


def end(artifacts: Path) -> None:
    """End the pipeline run of this process, without waiting."""
    tracking.wait_until_sent(artifacts, CONFIG, timeout=0)


def send(artifacts: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command that a user gives to send what waits."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.tracking.sender_process", str(artifacts)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def client_of(artifacts: Path) -> MlflowClient:
    return MlflowClient(Destination.of(artifacts, CONFIG).uri)


def runs_by_stage(client: MlflowClient, name: str = "bank") -> dict[str, Any]:
    """The nested runs by stage, and the parent under ""; more than one of either is an error."""
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id])
    runs = {run.data.tags.get(STAGE, ""): run for run in found}
    assert len(runs) == len(found)
    return runs


def losses(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    return sorted((p.step, p.value) for p in client.get_metric_history(run_id, "train/loss"))


def is_sending(destination: Destination) -> bool:
    lock = destination.try_lock()
    if lock is not None:
        os.close(lock)
    return lock is None


def sender_pid(artifacts: Path) -> int:
    """The sender that a stage started."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "pipeline.tracking.sender_process" in words and str(artifacts) in words:
            return process.pid
    raise AssertionError("no sender runs")


def test_a_pipeline_run_is_in_mlflow_though_its_sender_was_killed(artifacts: Path) -> None:
    """The real processes: a stage starts a sender, SIGKILL ends it midway, another one goes on."""
    data = make_artifact(artifacts, "prepare", "dataset", metrics={"rows/train": 900})
    destination = Destination.of(artifacts, CONFIG)
    run = tracking.start_stage(
        artifacts, stage="finetune", config=CONFIG,
        params={"seed": 1, "hub_token": "hunter2"}, inputs={"prepare": data},
    )  # fmt: skip
    for step in range(300):
        tracking.log_metrics({"train/loss": 1 / (1 + step)}, step=step)
    deadline = time.monotonic() + 60
    with closing(sqlite3.connect(artifacts / "mlflow" / "mlflow.db")) as store:
        while not store.execute("SELECT count(*) FROM metrics").fetchone()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    os.kill(sender_pid(artifacts), signal.SIGKILL)  # while the stage runs, its curve half sent
    for step in range(300, 400):
        tracking.log_metrics({"train/loss": 1 / (1 + step)}, step=step)
    files = {"loss.png": b"png", "weights/0": b"heavy"}
    made = make_artifact(artifacts, "finetune", "nemo_adapter", files=files)
    run.finish("FINISHED", made)
    delivery = tracking.wait_until_sent(artifacts, CONFIG, timeout=60)
    assert delivery == tracking.Delivery()
    assert destination.is_empty()

    client = client_of(artifacts)
    runs = runs_by_stage(client)
    assert set(runs) == {"", "finetune"}
    parent, stage = runs[""], runs["finetune"]
    assert losses(client, stage.info.run_id) == [(s, 1 / (1 + s)) for s in range(400)]
    assert stage.info.status == parent.info.status == "FINISHED"
    assert stage.data.tags[PARENT] == parent.info.run_id
    assert stage.data.params == parent.data.params == {"seed": "1", "hub_token": "***"}
    assert stage.data.tags["artifact.digest"] == made.manifest.digest
    assert stage.data.tags["mlflow.source.git.commit"] == made.manifest.code["commit"]
    (dataset,) = [given.dataset for given in stage.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest) == ("prepare", data.manifest.digest[:12])
    logged = {file.path for file in client.list_artifacts(stage.info.run_id)}
    assert logged == {"manifest.json", "loss.png"}
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "plots")]
    assert parent.data.metrics["seconds/finetune"] == 2.5
    assert "finetune" in parent.data.tags["mlflow.note.content"]


@pytest.mark.usefixtures("no_sender")
def test_a_sender_killed_at_any_point_loses_and_doubles_nothing(artifacts: Path) -> None:
    """Every call that changes the store is once the last that a sender makes, and once the first
    that it does not make."""

    destination = Destination.of(artifacts, CONFIG)
    chain = make_chain(artifacts)
    data = chain["prepare"]
    track(artifacts, "finetune", points=30, inputs={"prepare": data}, files={"loss.png": b"png"})
    register_candidate(artifacts, chain, "bank-model")
    end(artifacts)
    kills = 0
    for calls in range(100):
        for after in (False, True):
            sender = Sender(destination)
            sender.client = MortalClient(sender.client, calls, after)
            try:
                while sender.send_all():
                    pass
            except Killed:
                kills += 1
        if destination.is_empty():
            break
    assert kills > 20
    assert destination.is_empty()

    client = client_of(artifacts)
    runs = runs_by_stage(client)
    assert set(runs) == {"", "finetune", "register"}
    run = runs["finetune"]
    assert losses(client, run.info.run_id) == [(s, 1 / (1 + s)) for s in range(30)]
    assert len(run.inputs.dataset_inputs) == 1
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    (version,) = client.search_model_versions("name = 'bank-model'")
    aliases = client.get_registered_model("bank-model").aliases
    assert aliases == {"candidate": version.version, "champion": version.version}
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


class Killed(BaseException):
    """Nothing in the sender catches it, as nothing catches SIGKILL."""


class MortalClient:
    """A client whose user dies before or after a number of calls that change the store."""

    def __init__(self, client: MlflowClient, calls: int, after: bool):
        self._client, self._left, self._after = client, calls, after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if not name.startswith(("create_", "log_", "set_", "update_", "finalize_")):
            return call

        def changing(*args: Any, **kwargs: Any) -> Any:
            if not self._left and not self._after:
                raise Killed
            answer = call(*args, **kwargs)
            if not self._left:
                raise Killed
            self._left -= 1
            return answer

        return changing


@pytest.mark.parametrize("killed_in", ["unlink", "rmtree"])
@pytest.mark.usefixtures("no_sender")
def test_a_sender_killed_while_it_clears_up_holds_up_nothing(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    destination = Destination.of(artifacts, CONFIG)
    register_candidate(artifacts, make_chain(artifacts), "bank-model")
    track(artifacts, "export")
    end(artifacts)

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path if killed_in == "unlink" else shutil, killed_in, kill)
        with pytest.raises(Killed):
            Sender(destination).send_all()
    sender = Sender(destination)
    assert not sender.send_all()
    assert not list(destination.outbox.iterdir())
    assert set(runs_by_stage(sender.client)) == {"", "register", "export"}
    assert len(sender.client.search_model_versions("name = 'bank-model'")) == 1


@pytest.mark.usefixtures("no_sender")
def test_a_request_that_was_not_kept_is_told_and_holds_up_nothing(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(artifacts)

    def fill_disk(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfile", fill_disk)
        register_candidate(artifacts, chain, "bank-model")
    track(artifacts, "export")
    end(artifacts)
    sender = Sender(Destination.of(artifacts, CONFIG))
    assert not sender.send_all()
    runs = runs_by_stage(sender.client)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert "was not copied" in runs["register"].data.tags["registered"]
    assert not sender.client.search_model_versions("name = 'bank-model'")


def register_candidate(
    artifacts: Path, chain: dict[str, Any], name: str, config: Config | None = None
) -> None:
    config = config or compose.from_command_line(["stage=all", f"register.name={name}"])[2]
    run = tracking.start_stage(artifacts, stage="register", config=CONFIG, params={}, inputs={})
    destination = artifacts / "register"
    destination.mkdir(exist_ok=True)
    outcome = register.run(config, {k: v for k, v in chain.items() if k != "import"}, destination)
    made = make_artifact(artifacts, "register", outcome.kind, files={}, metrics=outcome.metrics)
    run.finish("FINISHED", made)


def offer_to(
    sender: Sender, right: int, failure: str | None = None, *settings: str, first_question: int = 0
) -> dict[str, Any]:
    """What the registry answers to an engine that answered so many of 200 questions right."""
    destination = sender.destination
    served = [1.0] * right + [0.0] * (200 - right)
    chain = make_chain(
        destination.artifacts, failure=failure, served=served, first_question=first_question
    )
    config = compose.from_command_line(["stage=all", "register.name=bank-model", *settings])[2]
    register_candidate(destination.artifacts, chain, "bank-model", config)
    (group,) = destination.groups()
    end(destination.artifacts)
    assert not sender.send_all()
    answer = destination.registered(group.id)
    assert answer
    return answer


@pytest.mark.usefixtures("no_sender")
def test_the_registry_keeps_the_better_model_as_champion(artifacts: Path) -> None:
    sender = Sender(Destination.of(artifacts, CONFIG))
    offer = partial(offer_to, sender)
    assert offer(170, "too bad")["aliases"] == ["candidate"]
    first = offer(170)
    assert (first["version"], first["aliases"]) == (2, ["candidate", "champion"])
    assert offer(180)["aliases"] == ["candidate", "champion"]
    worse = offer(160)
    assert worse["aliases"] == ["candidate"]
    said = "80.0% exact match, version 3 has 90.0% on the same 200 questions (0 better, 20 worse; "
    assert worse["reason"].startswith(said)
    assert worse["reason"].endswith("stays champion")
    assert offer(190, "lost an answer")["reason"] == "it did not pass the gate (lost an answer)"
    assert offer(180)["aliases"] == ["candidate", "champion"]  # a tie

    client = client_of(artifacts)
    champion = client.get_model_version_by_alias("bank-model", "champion")
    assert champion.version == client.get_model_version_by_alias("bank-model", "candidate").version
    assert champion.tags["exact_match"] == "0.9"
    assert champion.tags["measured"] == "served by onnxruntime int8, temperature 0"
    assert champion.tags["digest.build"]
    assert "| **served (onnxruntime int8, temperature 0)** | **90.0%** |" in champion.description
    model = client.get_logged_model(champion.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics}["exact_match/served"] == 0.9
    signature = Model.load(urlsplit(model.artifact_location).path).signature
    assert signature.inputs.input_names() == ["messages", "temperature", "max_tokens"]
    assert signature.outputs.input_names() == ["choices"]


@pytest.mark.usefixtures("no_sender")
def test_what_cannot_be_compared_stays_candidate_unless_a_reason_overrules_it(
    artifacts: Path,
) -> None:
    sender = Sender(Destination.of(artifacts, CONFIG))
    offer_to(sender, 160)
    other = offer_to(sender, 190, first_question=1000)
    assert other["aliases"] == ["candidate"]
    assert "cannot be compared with version 1" in other["reason"]
    chosen = offer_to(sender, 190, None, "register.overrule=new products", first_question=1000)
    assert chosen["aliases"] == ["candidate", "champion"]
    assert chosen["reason"].startswith("overruled (new products): 95.0% exact match; it cannot be")
    refused = offer_to(sender, 10, "too bad", "register.overrule=I want it", first_question=1000)
    assert refused["aliases"] == ["candidate"]  # what a gate refuses stays refused


@pytest.mark.usefixtures("no_sender")
def test_a_registered_engine_is_found_by_number_and_by_alias(artifacts: Path) -> None:
    sender = Sender(Destination.of(artifacts, CONFIG))
    offer_to(sender, 180)
    offer_to(sender, 160)
    config = compose.from_command_line(["stage=serve", f"artifacts={artifacts}"])[2]
    config = config.model_copy(
        update={"register_": config.register_.model_copy(update={"name": "bank-model"})}
    )
    found = engine_of("champion", config)
    assert (found.artifact.path, found.version.title) == (
        artifacts / "build",
        "version 1 (champion)",
    )
    there = r"no version best: choose one of 1, 2, candidate \(2\), champion \(1\)"
    with pytest.raises(ArtifactError, match=there):
        engine_of("best", config)

    said = mlflow_versions.find_all(sender.client, "bank-model")["versions"]
    read = versions_in(artifacts / "mlflow/mlflow.db", "bank-model")
    assert [(v.number, list(v.aliases), dict(v.tags)) for v in read] == [
        (each["version"], each["aliases"], each["tags"]) for each in sorted(said, key=_number)
    ]
    look = partial(mlflow_versions.find, sender.client)
    assert look("bank-model", "1") == look("bank-model", "champion")
    assert look("bank-model", "candidate")["version"] == 2
    assert look("bank-model", "7")["missing"].startswith("bank-model has no version 7")
    assert look("other", "1")["missing"].startswith("no version of other is registered yet")


def _number(version: Mapping[str, Any]) -> int:
    return int(version["version"])


@pytest.mark.usefixtures("no_sender")
def test_a_copy_and_a_moved_project_track_into_themselves(
    artifacts: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def track_and_send(folder: Path) -> dict[str, Any]:
        """Also the logged files of each run, which are read where the project lies now."""
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow has set
        track(folder, "finetune", files={"loss.png": b"png"})
        end(folder)
        monkeypatch.chdir(folder.parent)
        sender = Sender(Destination.of(folder, CONFIG))
        sender.send_all()
        experiment = sender.client.get_experiment_by_name("bank")
        return {
            run.info.run_id: {f.path for f in sender.client.list_artifacts(run.info.run_id)}
            for run in sender.client.search_runs([experiment.experiment_id])
        }

    before = track_and_send(artifacts)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    copy = Path(shutil.copytree(artifacts, elsewhere / "copy" / artifacts.name))
    found = track_and_send(copy)
    assert len(found) == 2 * len(before)
    assert all(found.values())
    files = sorted((artifacts / "mlflow" / "files").rglob("*"))
    moved = elsewhere / "moved" / "renamed"
    moved.parent.mkdir()
    shutil.move(artifacts, moved)
    found = track_and_send(moved)
    assert len(found) == 2 * len(before)
    assert all(found.values())
    assert not artifacts.exists()
    assert len(sorted((moved / "mlflow" / "files").rglob("*"))) > len(files)
    with closing(sqlite3.connect(outbox.embedded_store(moved))) as store:
        content = "".join(store.iterdump())
    assert str(artifacts) not in content
    assert str(elsewhere) not in content


@pytest.mark.usefixtures("no_sender")
def test_the_champion_is_found_with_its_scores(artifacts: Path) -> None:
    """Also through the process that stage=register asks."""
    sender = Sender(Destination.of(artifacts, CONFIG))
    config = compose.from_command_line(
        ["stage=register", f"artifacts={artifacts}", "register.name=bank-model"]
    )[2]
    assert champion_of(config) is None
    offer_to(sender, 150)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # which MLflow has set
    champion = champion_of(config)
    assert champion is not None
    # As an earlier version registered them: without the metric's name.
    assert (champion.version, set(champion.scores)) == (1, {"exact_match"})
    scores = champion.scores["exact_match"]
    assert (len(scores), sum(scores.values())) == (200, 150)
    engine = engine_with(champion.engine, artifacts)
    assert engine is not None
    assert engine.path == artifacts / "build"


@pytest.mark.usefixtures("no_sender")
def test_a_stage_that_was_killed_is_killed_in_mlflow_with_all_its_figures(artifacts: Path) -> None:
    code = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from pipeline.tracking import client as tracking\n"
        "from pipeline.config.tracking import TrackingConfig\n"
        "from pipeline.tracking.outbox import Destination\n"
        "Destination.ensure_sender = lambda self: None\n"
        f"config = TrackingConfig(**{CONFIG.model_dump()!r})\n"
        f"tracking.start_stage(Path({str(artifacts)!r}), stage='finetune', config=config,"
        " params={}, inputs={})\n"
        "for step in range(5):\n"
        "    tracking.log_metrics({'train/loss': 1 / (1 + step)}, step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    sender = Sender(Destination.of(artifacts, CONFIG))
    assert not sender.send_all()
    runs = runs_by_stage(sender.client)
    assert len(losses(sender.client, runs["finetune"].info.run_id)) == 5
    assert runs["finetune"].info.status == runs[""].info.status == "KILLED"


@pytest.mark.usefixtures("no_sender")
def test_figures_that_are_not_numbers_and_odd_names_hold_up_nothing(artifacts: Path) -> None:
    run = tracking.start_stage(
        artifacts, stage="finetune", config=CONFIG, inputs={},
        params={"long": "x" * 10_000, "odd(name)": 1, **{f"p{i}": i for i in range(250)}},
    )  # fmt: skip
    for step in range(1200):
        value = float("nan") if step == 700 else float(step)
        tracking.log_metrics({"train/loss": value, "grad (norm)": 2.0}, step=step)
    run.finish("FINISHED", None)
    end(artifacts)
    sender = Sender(Destination.of(artifacts, CONFIG))
    assert not sender.send_all()
    stage = runs_by_stage(sender.client)["finetune"]
    assert len(losses(sender.client, stage.info.run_id)) == 1199
    assert stage.data.tags["not_finite"] == "train/loss is nan at step 700"
    assert stage.data.metrics["grad _norm_"] == 2.0
    assert len(stage.data.params) == 252
    assert len(stage.data.params["long"]) == 6000


@pytest.mark.usefixtures("no_sender")
def test_a_run_that_mlflow_refuses_is_put_aside_and_the_rest_goes_on(artifacts: Path) -> None:
    destination = Destination.of(artifacts, CONFIG)
    track(artifacts, "merge", files={"loss.png": b"png"})
    (file,) = destination.runs()
    file.write_text(file.read_text().replace('"stage": "merge"', '"stage_": "merge"', 1))
    track(artifacts, "export")
    end(artifacts)
    sender = Sender(destination)
    assert sender.send_all()  # once more
    assert not sender.send_all()
    assert "export" in runs_by_stage(sender.client)
    kept = {path.name for path in (destination.folder / "rejected").iterdir()}
    assert kept == {file.name, f"{file.stem}.files"}
    assert str(destination.folder / "rejected") in (tracking.waiting_line(artifacts, CONFIG) or "")


@pytest.mark.usefixtures("no_sender")
def test_weights_are_uploaded_only_when_asked_for_and_unaltered(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Sender(Destination.of(artifacts, CONFIG))
    track(artifacts, "finetune", files={"weights/0": b"heavy"})
    end(artifacts)
    sender.send_all()
    run = runs_by_stage(sender.client)["finetune"].info.run_id
    assert not sender.client.list_artifacts(run, "artifact")

    asked = CONFIG.model_copy(update={"upload_weights": True, "experiment": "asked"})
    monkeypatch.setitem(globals(), "CONFIG", asked)
    track(artifacts, "merge", files={"weights/0": b"heavy"})
    track(artifacts, "export", files={"weights/0": b"heavy"})
    make_artifact(artifacts, "export", "exported", files={"weights/0": b"of a later run"})
    end(artifacts)
    sender.send_all()
    runs = runs_by_stage(sender.client, "asked")
    kept = sender.client.list_artifacts(runs["merge"].info.run_id, "artifact/weights")
    assert [file.path for file in kept] == ["artifact/weights/0"]
    assert not sender.client.list_artifacts(runs["export"].info.run_id, "artifact")
    assert runs["export"].data.tags["artifact.uploaded"].startswith("no")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve(artifacts: Path, port: int) -> Iterator[Any]:
    """Starts `mlflow server` when called."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        store = artifacts / "mlflow" / "mlflow.db"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri"]
        command += [f"sqlite:///{store}", "--port", str(port), "--workers", "1"]
        command += ["--artifacts-destination", str(artifacts / "served")]
        # Its job runners are seven processes more, and nothing here asks for a job.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (artifacts / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=artifacts, env=environment,
                start_new_session=True,
            )  # fmt: skip
        started.append(server)
        for _ in range(480):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.25)
        raise AssertionError((artifacts / "server.log").read_text())

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)  # its worker outlives its parent
        process.wait()


def test_a_server_that_is_away_delays_nothing_and_gets_everything_later(
    artifacts: Path, port: int, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    destination = Destination.of(artifacts, CONFIG)
    begin = time.monotonic()
    track(artifacts, "finetune", points=20, files={"loss.png": b"png"})
    assert time.monotonic() - begin < 3
    delivery = tracking.wait_until_sent(artifacts, CONFIG, timeout=60)
    assert delivery.waiting == 1
    assert "refused" in delivery.why
    line = tracking.waiting_line(artifacts, CONFIG)
    assert line
    assert address in line

    os.kill(sender_pid(artifacts), signal.SIGKILL)
    while is_sending(destination):
        time.sleep(0.05)
    serve()
    done = send(artifacts)
    assert done.returncode == 0, done.stderr
    assert tracking.waiting_line(artifacts, CONFIG) is None
    client = MlflowClient(address)
    runs = runs_by_stage(client)
    assert losses(client, runs["finetune"].info.run_id) == [(s, 1 / (1 + s)) for s in range(20)]
    assert runs["finetune"].data.tags.get(SENT) is None  # it was sent in one go
    assert {"loss.png", "manifest.json"} == {
        file.path for file in client.list_artifacts(runs["finetune"].info.run_id)
    }
