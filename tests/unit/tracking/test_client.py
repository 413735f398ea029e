"""What stages write to the outbox: all events, at once, without secrets, and without failing."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.tracking import TrackingConfig
from pipeline.core.paths import ROOT
from pipeline.core.processes import Process
from pipeline.tracking import client as tracking
from pipeline.tracking import outbox
from pipeline.tracking.outbox import Destination, Group, read_events
from tests.made_artifacts import make_artifact, make_chain

CONFIG = TrackingConfig(enabled=True, uri=None, experiment="bank", upload_weights=False)


@pytest.fixture(autouse=True)
def no_sender(monkeypatch: pytest.MonkeyPatch) -> list[Destination]:
    """Senders that would have been started."""
    started: list[Destination] = []
    monkeypatch.setattr(Destination, "ensure_sender", lambda self: started.append(self))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(outbox.OWNER_VARIABLE, raising=False)
    return started


def start(artifacts: Path, stage: str = "finetune", **others: Any) -> tracking.StageRun:
    given = {"config": CONFIG, "params": {"seed": 1}, "inputs": {}, **others}
    return tracking.start_stage(artifacts, stage=stage, **given)


def outbox_events(artifacts: Path) -> list[dict[str, Any]]:
    (file,) = Destination.of(artifacts).runs()
    return read_events(file, 0)[0]


def test_a_stage_run_is_written_to_the_outbox_as_it_happens(
    tmp_path: Path, no_sender: list[Destination]
) -> None:
    data = make_artifact(tmp_path, "prepare", "dataset", metrics={"rows": 9})
    run = start(tmp_path, params={"finetune": {"method": "lora"}}, inputs={"prepare": data})
    begin = outbox_events(tmp_path)[0]
    assert begin["event"] == "start"
    assert begin["params"] == {"finetune.method": "lora"}
    assert begin["inputs"]["prepare"]["digest"] == data.manifest.digest
    assert begin["inputs"]["prepare"]["figures"] == {"rows": 9.0}

    tracking.log_metrics({"train/loss": 0.5}, step=7)
    assert outbox_events(tmp_path)[1]["metrics"] == {"train/loss": [0.5, 7]}

    made = make_artifact(tmp_path, "finetune", "nemo_adapter", metrics={"train/loss": 0.4, "x": 2})
    run.finish("FINISHED", made)
    end = outbox_events(tmp_path)[2]
    assert end["status"] == "FINISHED"
    assert end["digest"] == made.manifest.digest
    assert end["metrics"]["train/loss"] == [0.4, 7]  # at the end of its curve
    assert end["metrics"]["x"] == [2.0, 0]
    assert end["metrics"]["stage/seconds"] == [2.5, 0]
    assert len(no_sender) == 2


def test_figures_outside_a_stage_run_go_nowhere(tmp_path: Path) -> None:
    start(tmp_path).finish("FAILED", None, error="no memory")
    before = outbox_events(tmp_path)
    tracking.log_metrics({"loss": 1.0}, step=1)
    assert outbox_events(tmp_path) == before
    assert before[-1]["error"] == "no memory"


def test_tracking_switched_off_leaves_no_trace(tmp_path: Path) -> None:
    off = CONFIG.model_copy(update={"enabled": False})
    run = start(tmp_path, config=off)
    tracking.log_metrics({"loss": 1.0}, step=1)
    run.finish("FINISHED", make_artifact(tmp_path, "finetune", "nemo_adapter"))
    assert tracking.wait_until_sent(tmp_path, off, timeout=5) == tracking.Delivery()
    assert not (tmp_path / ".tracking").exists()


def test_reports_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    big = "x" * (tracking.REPORT_BYTES + 1)
    files = {"report.json": "{}", "accuracy.png": b"png", "big.html": big, "model.bin": b"weights"}
    made = make_artifact(tmp_path, "evaluate", "report", files=files)
    start(tmp_path, "evaluate").finish("FINISHED", made)
    (made.path / "report.json").write_text("of a later run")
    (kept,) = Destination.of(tmp_path).outbox.glob("*.files")
    assert sorted(f.name for f in kept.iterdir()) == [
        "accuracy.png",
        "manifest.json",
        "report.json",
    ]
    assert (kept / "report.json").read_text() == "{}"


def test_a_model_folder_shows_plots_but_not_its_configuration(tmp_path: Path) -> None:
    files = {
        "config.json": "{}",
        "tokenizer.json": "{}",
        "loss.png": b"png",
        "model.safetensors": b"",
    }
    made = make_artifact(tmp_path, "merge", "hf_checkpoint", files=files)
    assert tracking.reports_of(made) == ["loss.png"]


def test_a_full_disk_gives_a_warning_and_stops_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".tracking").write_text("a file where a folder is needed")
    run = start(tmp_path)
    tracking.log_metrics({"loss": 1.0}, step=1)
    run.finish("FINISHED", make_artifact(tmp_path, "finetune", "nemo_adapter"))
    assert "nothing is tracked" in capsys.readouterr().err


def test_a_broken_outbox_gives_a_warning_and_stops_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Destination.of(tmp_path).outbox
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    start(tmp_path).finish("FAILED", None)
    assert "FileExistsError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key",
    ["api_key", "hub.token", "password", "db_password", "aws-secret", "access_key", "X_APIKEY"],
)
def test_secrets_are_masked_wherever_they_are_nested(key: str) -> None:
    assert tracking.flatten({"serve": {key: "hunter2"}}) == {f"serve.{key}": "***"}


def test_settings_that_only_sound_secret_are_not_masked() -> None:
    settings = {"max_tokens": 32, "tokens_per_second": 1, "token_f1": 0.5, "password": None}
    assert tracking.flatten(settings) == {name: str(value) for name, value in settings.items()}


@given(st.text("abcABC012%._-", min_size=12, max_size=20))
def test_the_password_of_a_url_never_gets_out(password: str) -> None:
    flat = tracking.flatten({"tracking": {"uri": f"https://me:{password}@host/x"}, "a": ["b"]})
    assert flat == {"tracking.uri": "https://me:***@host/x", "a": '["b"]'}


def test_destination_is_the_environments_then_the_configured_then_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = CONFIG.model_copy(update={"uri": "http://team:5000"})
    assert Destination.of(tmp_path, CONFIG).uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert Destination.of(tmp_path, configured).uri == "http://team:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mine:5000")
    mine = Destination.of(tmp_path, configured)
    assert mine.uri == "http://me:hunter2@mine:5000"
    assert "hunter2" not in str(mine.folder)
    assert mine.artifact_root is None


def test_passwords_are_written_to_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mine:5000")
    monkeypatch.setattr(sys, "argv", ["pipeline", "tracking.uri=http://me:hunter2@mine:5000"])
    start(tmp_path, params={"uri": "http://me:hunter2@mine"}).finish(
        "FAILED", None, error="http://me:hunter2@mine:5000 is away"
    )
    written = [f.read_text() for f in (tmp_path / ".tracking").rglob("*") if f.is_file()]
    assert written
    assert not [text for text in written if "hunter2" in text]


def test_stages_of_one_process_share_a_pipeline_run_until_it_ends(tmp_path: Path) -> None:
    for stage in ("prepare", "import"):
        start(tmp_path, stage).finish("FAILED", None)
    destination = Destination.of(tmp_path)
    (group,) = destination.groups()
    assert group.stages == ("prepare", "import")
    assert len(destination.runs_of(group.id)) == 2
    replace(group, ended=True).write(destination.outbox)
    start(tmp_path, "merge")
    assert len(list(destination.groups())) == 2


def test_stages_of_other_processes_join_the_owner_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Process(os.getppid(), Process.this().started - 100)
    monkeypatch.setenv(outbox.OWNER_VARIABLE, f"{owner.pid}:{owner.started}")
    start(tmp_path)
    (group,) = Destination.of(tmp_path).groups()
    assert group.owner == owner
    assert tracking.new_group() != {outbox.OWNER_VARIABLE: f"{owner.pid}:{owner.started}"}


def test_under_a_bare_dvc_repro_the_pipeline_run_is_dvcs(tmp_path: Path) -> None:
    ask = "from pipeline.tracking.outbox import group_owner; print(group_owner().pid)"
    through_a_shell = ["sh", "-c", f"{shlex.quote(sys.executable)} -c '{ask}'; true"]
    dvc = tmp_path / "dvc"
    dvc.write_text(
        "import os, subprocess\n"
        "print(os.getpid(), flush=True)\n"
        f"subprocess.run({through_a_shell!r}, check=True)\n"
    )
    output = subprocess.run(
        [sys.executable, str(dvc)], capture_output=True, text=True, check=True,
        cwd=ROOT,
    ).stdout.split()  # fmt: skip
    assert output[0] == output[1]


def test_an_owner_is_alive_only_as_the_process_that_it_was() -> None:
    me = Process.this()
    assert me.is_alive()
    assert not Process(me.pid, me.started - 60).is_alive()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not Process(child.pid, me.started).is_alive()
    assert Group("a", me, 0.0, "bank", "root").is_open()
    assert not Group("a", me, 0.0, "bank", "root", ended=True).is_open()


def test_an_incomplete_line_loses_only_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.jsonl"
    file.write_bytes(b'{"event": 1}\n{"event": \n[2]\n{"event": 2}\n{"event": 3')
    events, end = read_events(file, 0)
    assert events == [{"event": 1}, {"event": 2}]
    assert "broken line" in capsys.readouterr().err
    with file.open("ab") as stream:
        stream.write(b"}\n")
    assert read_events(file, end) == ([{"event": 3}], file.stat().st_size)


def test_only_stages_that_did_not_run_are_recorded_as_reused(tmp_path: Path) -> None:
    made = make_chain(tmp_path)
    tracking.track_reused(tmp_path, CONFIG, made)
    assert Destination.of(tmp_path).is_empty()  # DVC had nothing to do
    start(tmp_path, "prepare").finish("FINISHED", made["prepare"])
    tracking.track_reused(tmp_path, CONFIG, ["prepare", "import", "register"])
    runs = [read_events(file, 0)[0] for file in Destination.of(tmp_path).runs()]
    assert [(events[0]["stage"], events[-1]["reused"]) for events in runs] == [
        ("prepare", False),
        ("import", True),
    ]


def test_a_failing_destination_is_not_waited_for_and_reported(tmp_path: Path) -> None:
    assert tracking.waiting_line(tmp_path, CONFIG) is None
    start(tmp_path).finish("FAILED", None)
    assert tracking.waiting_line(tmp_path, CONFIG) is None  # it is on its way
    destination = Destination.of(tmp_path)
    (destination.folder / "last_error.txt").write_text("ConnectionError: refused\n")
    delivery = tracking.wait_until_sent(tmp_path, CONFIG, timeout=60)
    assert delivery == tracking.Delivery(1, "ConnectionError: refused", None)
    line = tracking.waiting_line(tmp_path, CONFIG)
    assert line
    assert "1 stage runs could not be sent" in line
    assert "ConnectionError: refused" in line
    assert f"python -m pipeline.tracking.sender_process {tmp_path}" in line


def test_runs_that_mlflow_refused_are_reported(tmp_path: Path) -> None:
    rejected = Destination.of(tmp_path).folder / "rejected"
    rejected.mkdir(parents=True)
    (rejected / "1-finetune.jsonl").write_text("")
    line = tracking.waiting_line(tmp_path, CONFIG)
    assert line
    assert str(rejected) in line


def test_waiting_ends_at_the_timeout(tmp_path: Path) -> None:
    start(tmp_path).finish("FAILED", None)
    assert tracking.wait_until_sent(tmp_path, CONFIG, timeout=0.2).waiting == 1


def test_the_delivery_has_the_registration(tmp_path: Path) -> None:
    start(tmp_path).finish("FAILED", None)
    destination = Destination.of(tmp_path)
    (group,) = destination.groups()
    for id, expected in (("another", None), (group.id, {"group": group.id, "version": 3})):
        answer = json.dumps({"group": id, "version": 3})
        (destination.folder / "registered.json").write_text(answer)
        assert destination.registered(group.id) == expected


def test_stages_never_import_mlflow() -> None:
    code = (
        "import sys, pipeline.orchestration.runner, pipeline.tracking.client\n"
        "import pipeline.orchestration.summary\n"
        "import pipeline.stages.register, pipeline.tracking.sender_process\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlflow', 'torch', 'pandas')])"
    )
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


BROKEN = {
    "empty": b"", "binary": bytes(range(256)), "list": b"[1]", "number": b"3", "half": b'{"id": "a',
    "deep": b"[" * 200_000, "conflict": b"<<<<<<< HEAD\n{}\n=======\n", "folder": None,
    "wrong inside": b'{"id": 1, "owner": [], "stages": 3, "group": {}, "event": "start"}',
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize(
    "name", ["spool/1.group", "spool/1-x.jsonl", "registered.json", "last_error.txt"]
)
def test_files_of_the_outbox_may_be_broken(tmp_path: Path, name: str, how: str) -> None:
    destination = Destination.of(tmp_path)
    destination.outbox.mkdir(parents=True)
    content = BROKEN[how]
    if content is None:
        (destination.folder / name).mkdir()
    else:
        (destination.folder / name).write_bytes(content)
    start(tmp_path).finish("FAILED", None)
    assert tracking.wait_until_sent(tmp_path, CONFIG, timeout=0).waiting >= 1
    tracking.waiting_line(tmp_path, CONFIG)
    (group,) = destination.groups()
    assert len(destination.runs_of(group.id)) == 1  # the run that started now is whole
    for file in destination.runs():
        read_events(file, 0)
    assert destination.registered(group.id) is None


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp:/x", "MLflow knows no address that begins with htp:"),
        ("http://host:99999", "it is not an address: Port out of range"),
        ("http://[::1", "nothing is tracked (ValueError: "),
        ("http:///x", "it names no host"),
        ("http://127.0.0.1:9", "ConnectionRefusedError"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named_and_stops_nothing(
    tmp_path: Path, uri: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace_uri(uri)
    run = tracking.start_stage(
        tmp_path, stage="prepare", config=config, params={}, inputs={}, files={}
    )
    run.finish("FAILED", None)
    line = tracking.waiting_line(tmp_path, config)
    assert line
    assert said in line
    assert "\n" not in line
    assert tracking.wait_until_sent(tmp_path, config, timeout=0).waiting in (0, 1)
    tracking.track_reused(tmp_path, config, ["prepare"])
    assert "Traceback" not in capsys.readouterr().err


def replace_uri(uri: str) -> TrackingConfig:
    return CONFIG.model_copy(update={"uri": uri})
