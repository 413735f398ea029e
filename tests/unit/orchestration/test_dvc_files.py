"""DVC's own files, broken in every way: mended, or refused in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import Busy, ConfigError
from pipeline.core.paths import CONF
from pipeline.orchestration import compose, dvc_files, stage_versions
from pipeline.orchestration.graph import declared_stages, read_graph
from pipeline.orchestration.project import refuse_copy
from tests.made_artifacts import make_artifact

# Each way in which a file that is read back can be broken.
DAMAGE: dict[str, bytes | None] = {
    "empty": b"",
    "binary": bytes(range(256)),
    "list": b"[1, 2]",
    "number": b"3",
    "words": b"just words",
    "truncated": b'{"stages": {"a": {"cmd',
    "conflict": b"<<<<<<< HEAD\nschema: 1\n=======\nschema: 2\n>>>>>>> other\n",
    "deep": b"[" * 200_000,
    "wrong inside": b'{"stages": {"a": [1]}, "write": [2], "read": 3}',
    "folder": None,
}


def damage(file: Path, how: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = DAMAGE[how]
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    dvc_files.write_folder(tmp_path)
    return tmp_path


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", [dvc_files.LOCK, dvc_files.RWLOCK])
def test_what_dvc_can_make_again_is_moved_aside(
    project: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(project / name, how)
    dvc_files.check(project)
    assert not (project / name).exists()
    assert (project / f"{name}.broken").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "it is moved to" in line
    damage(project / name, how)  # once more: nothing is overwritten
    dvc_files.check(project)
    assert (project / f"{name}.broken2").exists()


@pytest.mark.parametrize("name", [".dvc/tmp", ".dvc/tmp/lock", ".dvc/tmp/rwlock.lock"])
def test_a_lock_of_the_wrong_kind_is_moved_aside(project: Path, name: str) -> None:
    damage(project / name, "words" if name == ".dvc/tmp" else "folder")
    dvc_files.check(project)
    assert not (project / name).exists()


@pytest.mark.parametrize("how", ["binary", "words", "truncated", "conflict", "folder"])
@pytest.mark.parametrize("name", [dvc_files.CONFIG, dvc_files.LOCAL])
def test_a_broken_configuration_is_refused(project: Path, name: str, how: str) -> None:
    (project / name).unlink(missing_ok=True)
    damage(project / name, how)
    with pytest.raises(ConfigError, match=r"cannot be read .*: correct it, or run `git") as caught:
        dvc_files.check(project)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_broken_graph_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("pipeline.orchestration.graph.graph_file", lambda: tmp_path / "dvc.yaml")
    damage(tmp_path / "dvc.yaml", how)
    readers: list[Callable[[], object]] = [declared_stages, lambda: read_graph({})]
    for read in readers:
        with pytest.raises(ConfigError, match="restore it") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", DAMAGE)
def test_broken_settings_are_refused_and_written_anew(tmp_path: Path, how: str) -> None:
    file = tmp_path / "params.yaml"
    damage(file, how)
    again = "params.yaml .*: run `python -m pipeline stage=all`"
    with pytest.raises(ConfigError, match=again) as caught:
        compose.from_command_line(["--params", str(file), "stage=prepare"])
    assert "\n" not in str(caught.value)
    if how != "folder":  # a folder without params.yaml is no project
        compose.write_params(tmp_path, {"seed": 1})
        assert file.read_text().endswith("seed: 1\n")


@pytest.mark.parametrize("how", DAMAGE)
def test_broken_files_of_versions_are_written_anew(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_versions, "_version", lambda library: "1.0")
    stage_versions.write(tmp_path)
    file = tmp_path / "versions/prepare.json"
    whole = file.read_bytes()
    file.unlink()
    damage(file, how)
    stage_versions.write(tmp_path)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("how", DAMAGE)
def test_a_broken_record_of_versions_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_versions, "RECORD", tmp_path / "versions.json")
    damage(tmp_path / "versions.json", how)
    assert stage_versions.main(tmp_path / "artifacts") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "versions.json cannot be read" in line


def test_a_project_without_git_gets_a_dvc_that_works_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / dvc_files.CONFIG).write_text("[core]\n    analytics = false\n")
    for _ in range(2):
        dvc_files.check(tmp_path)
        assert "no_scm = true" in (tmp_path / dvc_files.LOCAL).read_text()
    assert capsys.readouterr().err.count("DVC runs without git") == 1
    (tmp_path / ".git").mkdir()
    dvc_files.check(tmp_path)
    assert not (tmp_path / dvc_files.LOCAL).exists()


def test_a_project_without_dvcs_folder_gets_one(tmp_path: Path) -> None:
    dvc_files.check(tmp_path)
    said = (tmp_path / dvc_files.CONFIG).read_text()
    assert "no_scm" not in said
    assert str(CONF) not in said  # a path of this machine
    local = (tmp_path / dvc_files.LOCAL).read_text()
    assert f"config_dir = {CONF}\n" in local
    assert "no_scm = true" in local
    (tmp_path / dvc_files.LOCAL).write_text("[core]\n    verbose = true\n")
    dvc_files.check(tmp_path)
    assert "verbose" in (tmp_path / dvc_files.LOCAL).read_text()  # the user's own


def hold(project: Path, pid: int) -> None:
    entry = {"pid": pid, "cmd": "dvc repro"}
    (project / ".dvc/tmp").mkdir(exist_ok=True)
    held = {"write": {"/a": entry}, "read": {"/b": [entry]}}
    (project / dvc_files.RWLOCK).write_text(json.dumps(held))


def test_a_run_waits_for_a_dvc_and_not_for_another_with_its_pid(project: Path) -> None:
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    for words, refused in (([*sleep, "dvc"], True), (sleep, False)):
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            hold(project, process.pid)
            try:
                if refused:
                    with pytest.raises(
                        Busy, match=rf"DVC \(process {process.pid}\) runs the graph"
                    ):
                        dvc_files.check(project)
                else:
                    dvc_files.check(project)  # its pid was a DVC's that was killed
                    assert not (project / dvc_files.RWLOCK).exists()
            finally:
                process.kill()
    hold(project, process.pid)  # nobody has it: DVC tidies up
    dvc_files.check(project)


def test_what_dvc_recorded_of_other_settings_is_forgotten(project: Path) -> None:
    config = {"finetune": {"max_steps": 170}, "seed": 1}
    for stage in ("finetune", "merge"):
        make_artifact(project / "artifacts", stage, "any", config=config)
    entry = {"cmd": "x", "params": {"params.yaml": config}}
    other = {"cmd": "x", "params": {"params.yaml": {**config, "finetune": {"max_steps": 60}}}}
    lock = project / "dvc.lock"
    said = {"schema": "2.0", "stages": {"prepare": entry, "finetune": other, "merge": entry}}
    lock.write_text(yaml.safe_dump(said))
    dvc_files.forget_what_differs(project, project / "artifacts")
    del said["stages"]["finetune"]  # type: ignore[attr-defined]
    assert yaml.safe_load(lock.read_text()) == said
    before = lock.stat().st_mtime_ns
    dvc_files.forget_what_differs(project, project / "artifacts")
    assert lock.stat().st_mtime_ns == before


def test_a_number_that_dvc_writes_as_yaml_1_2_is_the_same_number(project: Path) -> None:
    """DVC writes 1e-08, which PyYAML reads as a text: finetune ran again each time."""
    config = {"finetune": {"eps": 1e-08, "rates": [1.5e-05], "name": "1e-08x"}}
    make_artifact(project / "artifacts", "finetune", "any", config=config)
    lock = project / "dvc.lock"
    said = (
        "schema: '2.0'\nstages:\n  finetune:\n    cmd: x\n    params:\n      params.yaml:\n"
        "        finetune: {eps: 1e-08, rates: [1.5e-05], name: 1e-08x}\n"
    )
    lock.write_text(said)
    dvc_files.forget_what_differs(project, project / "artifacts")
    assert lock.read_text() == said
    lock.write_text(said.replace("eps: 1e-08", "eps: 2e-08"))
    dvc_files.forget_what_differs(project, project / "artifacts")
    assert yaml.safe_load(lock.read_text())["stages"] == {}


def test_a_copy_that_dvc_deletes_is_refused(tmp_path: Path) -> None:
    refuse_copy(tmp_path)
    with pytest.raises(ConfigError, match="deletes with its artifacts"):
        refuse_copy(tmp_path / ".dvc/tmp/exps/tmpabc")


def test_a_damaged_artifact_is_made_again(project: Path) -> None:
    """DVC compares manifests only: to it, nothing has changed."""
    config = {"seed": 1}
    place = make_artifact(project / "artifacts", "merge", "any", config=config).path
    entry = {"cmd": "x", "params": {"params.yaml": config}}
    lock = project / "dvc.lock"
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"merge": entry}}))
    dvc_files.forget_what_differs(project, project / "artifacts", reread=True)
    assert yaml.safe_load(lock.read_text())["stages"] == {"merge": entry}
    (place / "data.txt").write_text("another")
    dvc_files.forget_what_differs(project, project / "artifacts")
    assert yaml.safe_load(lock.read_text())["stages"] == {}
