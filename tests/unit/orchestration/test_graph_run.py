"""The whole graph: one run at a time, whose settings no other changes."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.schema import load
from pipeline.core.errors import Busy, DataError, PipelineError
from pipeline.core.paths import EXAMPLE, ROOT
from pipeline.orchestration import compose, graph_run
from pipeline.orchestration.runner import hold


class Stopped(Exception):
    """Where DVC would have begun."""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, with settings of its own."""
    shutil.copy(EXAMPLE / "dvc.yaml", tmp_path)
    (tmp_path / "data").symlink_to(EXAMPLE / "data")
    (tmp_path / "params.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(checkout: Path, *overrides: str) -> None:
    where = [f"artifacts={checkout / 'artifacts'}", "tracking.enabled=false"]
    tree = compose.compose([*where, *overrides])
    graph_run.run_graph(tree, load(tree))


def test_a_second_run_leaves_the_settings_of_the_one_that_runs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dvc(*given: Any) -> int:
        monkeypatch.setattr(graph_run, "run_command", lambda *_: pytest.fail("DVC started twice"))
        with pytest.raises(Busy, match=r"in use by process .* wait for it"):
            run(checkout, "seed=2")
        raise Stopped

    monkeypatch.setattr(graph_run, "run_command", dvc)
    with pytest.raises(Stopped):
        run(checkout, "seed=1")
    assert yaml.safe_load((checkout / "params.yaml").read_text())["seed"] == 1
    monkeypatch.setattr(graph_run, "run_command", lambda *_: 1)
    with pytest.raises(PipelineError, match="DVC ended with exit code 1, for the reason above"):
        run(checkout, "seed=2")
    assert yaml.safe_load((checkout / "params.yaml").read_text())["seed"] == 2


COMMAND = [sys.executable, "-m", "dvc", "repro"]
# Stands for DVC, which `python -m dvc` finds in the project first.
DVC = """
import os, pathlib, signal, sys, time
def interrupted(*_):
    pathlib.Path("interrupted").touch()
    sys.exit(1)
signal.signal(signal.SIGINT, interrupted)
pathlib.Path("pid.tmp").write_text(str(os.getpid()))
os.replace("pid.tmp", "pid")
time.sleep(60)
"""


def pid_of_dvc(checkout: Path) -> int:
    deadline = time.monotonic() + 20
    while not (checkout / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int((checkout / "pid").read_text())


def test_what_ends_the_command_interrupts_dvc(checkout: Path) -> None:
    (checkout / "dvc.py").write_text(DVC)

    def end() -> None:
        pid_of_dvc(checkout)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    with hold(checkout / "artifacts") as lock, pytest.raises(KeyboardInterrupt):
        graph_run.run_command(COMMAND, checkout, os.environ, lock)
    ending.join()
    assert (checkout / "interrupted").exists()
    assert not Path(f"/proc/{pid_of_dvc(checkout)}").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_dvc_ends_with_a_command_that_is_killed_and_keeps_the_lock_until_then(
    checkout: Path,
) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    (checkout / "dvc.py").write_text(DVC.replace("signal.signal", deaf + "signal.signal", 1))
    code = (
        "import os, pathlib; from pipeline.orchestration import graph_run;"
        "from pipeline.orchestration.runner import hold;"
        f"project = pathlib.Path({str(checkout)!r})\n"
        "with hold(project / 'artifacts') as lock:"
        f"    graph_run.run_command({COMMAND!r}, project, os.environ, lock)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as command:
        dvc = pid_of_dvc(checkout)
        command.kill()
    with pytest.raises(Busy), hold(checkout / "artifacts"):
        pass
    os.kill(dvc, signal.SIGKILL)


def test_a_missing_file_is_refused_before_anything_is_written(checkout: Path) -> None:
    before = sorted(checkout.iterdir())
    tree = compose.compose(["data.folder=data/none"])
    with pytest.raises(DataError, match="data/none does not exist: correct the setting"):
        graph_run.run_graph(tree, load(tree))
    assert sorted(checkout.iterdir()) == before
    assert (checkout / "params.yaml").read_text() == "{}"


def test_an_interrupt_that_a_library_swallows_is_followed_by_a_harder_signal(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_run, "INTERRUPT_SECONDS", 0.2)
    deaf = DVC.replace("    sys.exit(1)", "    pass").replace(
        "time.sleep(60)", "while True: time.sleep(1)"
    )
    (checkout / "dvc.py").write_text(deaf)

    def end() -> None:
        pid_of_dvc(checkout)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(KeyboardInterrupt):
        graph_run.run_command(COMMAND, checkout, os.environ)
    ending.join()
    assert not Path(f"/proc/{pid_of_dvc(checkout)}").exists()


def test_a_dvc_that_is_killed_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "dvc.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(PipelineError, match=r"DVC was killed by SIGKILL, .* run the same command"):
        run(checkout)


def test_a_stage_ends_with_a_dvc_that_is_killed(checkout: Path) -> None:
    """Not its child: DVC starts a shell, and this the stage."""
    stage = (
        "import os, time, pathlib; from pipeline.core.processes import end_with;"
        "from pipeline.tracking.outbox import started_by; end_with(started_by());"
        "pathlib.Path('pid.tmp').write_text(str(os.getpid())); os.replace('pid.tmp', 'pid');"
        "time.sleep(60)"
    )
    shell = ["sh", "-c", f'{shlex.quote(sys.executable)} -c "{stage}"; true']
    (checkout / "dvc.py").write_text(f"import subprocess; subprocess.run({shell!r})")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(COMMAND, cwd=checkout, env=environment) as dvc:
        pid = pid_of_dvc(checkout)
        dvc.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_settings_are_replaced_whole(checkout: Path) -> None:
    compose.write_params(checkout, compose.compose([]))
    with (checkout / "params.yaml").open() as reading:
        compose.write_params(checkout, compose.compose(["seed=2"]))
        assert yaml.safe_load(reading)["seed"] == 1
    assert not list(checkout.glob("*.tmp"))
