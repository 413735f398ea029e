"""Jobs on a real Slurm cluster of two nodes: states, logs, exit codes, arrays, lost nodes, cancel.

`python -m tools.try_slurm` fine-tunes on two nodes, one of which is killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.paths import ROOT
from pipeline.deployment.launchers import slurm, slurm_queue
from pipeline.deployment.launchers.job import JobSpec
from pipeline.orchestration import project
from tests.slurm_cluster import NODES, PARTITION, Cluster, needs_slurm
from tests.unit.deployment.launchers.cases import configured

pytestmark = [needs_slurm, pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def words(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of the launcher; this process uses the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(slurm_queue, "POLL_SECONDS", 0.2)
    return [
        "launcher=slurm", "launcher.account=null", f"launcher.partition={PARTITION}",
        "launcher.container_image=null", "launcher.gpus=0", f"launcher.job_folder={tmp_path}/jobs",
    ]  # fmt: skip


def submitted(words: list[str], script: str, nodes: int = 1, jobs: int = 1) -> slurm.Submitted:
    """A job of shell commands; an array of them with jobs over 1."""
    launcher = configured(["stage=prepare", *words]).launcher
    spec = JobSpec("shell", "prepare", ("sh", "-c", script), nodes, 0)
    return slurm.submit([spec] * jobs, launcher, Path("artifacts"))


def test_states_and_log_come_back(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    job = submitted(words, "echo rank $PET_NODE_RANK of $PET_MASTER_ADDR", nodes=2)
    (ended,) = slurm_queue.follow(job, "shell")
    slurm_queue.require_success([ended], job)
    shown = capsys.readouterr()
    assert (ended.state, ended.nodes) == ("COMPLETED", "n[1-2]")
    assert sorted(shown.out.split("\n")) == ["", "rank 0 of 127.0.0.1", "rank 1 of 127.0.0.1"]
    assert f"job {job.number}: COMPLETED on n[1-2]" in shown.err


def test_a_job_that_the_pipeline_refuses_is_not_started_again(words: list[str]) -> None:
    """Neither is its exit code lost."""
    job = submitted([*words, "launcher.retries=3"], "exit 3")
    (ended,) = slurm_queue.follow(job, "shell")
    assert (ended.state, ended.code, ended.restarts) == ("FAILED", 3, 0)
    with pytest.raises(Exception, match=f"job {job.number} ended as FAILED") as caught:
        slurm_queue.require_success([ended], job)
    assert caught.value.exit_code == 3  # type: ignore[attr-defined]


def test_a_job_that_loses_a_node_is_started_again(
    words: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    counts = tmp_path / "started"
    script = f'echo "$SLURM_NODEID" >> {counts}; [ $(wc -l < {counts}) -gt 2 ] || sleep 300'
    job = submitted([*words, "launcher.retries=2"], script, nodes=2)
    _until(lambda: counts.exists() and len(counts.read_text().split()) == 2)
    assert cluster.kill_node("n2") >= 2
    _until(lambda: slurm_queue.tasks(job.number)[0].state == "PENDING")
    cluster.start_node("n2")
    cluster.start_now(job.number)
    _until(lambda: slurm_queue.tasks(job.number)[0].state in slurm_queue.ENDED)
    (ended,) = slurm_queue.tasks(job.number)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1)
    assert sorted(counts.read_text().split()) == ["0", "0", "1", "1"]


def test_a_cancelled_job_is_not_started_again(words: list[str], tmp_path: Path) -> None:
    job = submitted([*words, "launcher.retries=3"], f"touch {tmp_path}/runs; sleep 60")
    _until((tmp_path / "runs").exists)
    slurm_queue.cancel(job.number)
    _until(lambda: slurm_queue.tasks(job.number)[0].state in slurm_queue.ENDED)
    (ended,) = slurm_queue.tasks(job.number)
    assert (ended.state, ended.restarts) == ("CANCELLED", 0)


def test_each_task_of_an_array_has_its_state(words: list[str]) -> None:
    job = submitted([*words, "launcher.retries=0"], "exit $((SLURM_ARRAY_TASK_ID * 4))", jobs=2)
    ended = sorted(slurm_queue.follow(job, "shell"), key=lambda task: task.name)
    assert [task.name for task in ended] == [f"{job.number}_0", f"{job.number}_1"]
    assert [(task.state, task.code) for task in ended] == [("COMPLETED", 0), ("FAILED", 4)]


def test_a_sweep_is_a_job_array(words: list[str], tmp_path: Path) -> None:
    """The command waits for it, and shows its table; Ctrl-C would cancel it."""
    shop = tmp_path / "shop"
    project.init(shop)
    command = [sys.executable, "-m", "pipeline", "-m", "stage=prepare", "seed=1,2",
               "tracking.enabled=false", *words]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=shop,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    (folder,) = (shop / "artifacts/sweeps").iterdir()
    results = [json.loads((folder / n / "result.json").read_text()) for n in ("0", "1")]
    assert [r["overrides"][0] for r in results] == ["seed=1", "seed=2"]
    assert [r["code"] for r in results] == [0, 0]
    assert "job array" in done.stderr
    assert done.stderr.count("done") == 2


def test_ctrl_c_cancels_the_job_that_the_command_waits_for(
    words: list[str], tmp_path: Path
) -> None:
    job = submitted(words, f"touch {tmp_path}/runs; sleep 60")
    code = (
        "from pathlib import Path; from pipeline.deployment.launchers import slurm, slurm_queue; "
        f"slurm_queue.follow(slurm.Submitted({job.number!r}, Path({str(job.folder)!r})), 'shell')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as waiting:
        _until((tmp_path / "runs").exists)
        assert waiting.stderr is not None
        while "RUNNING" not in waiting.stderr.readline():
            pass
        waiting.send_signal(signal.SIGINT)
        assert f"cancelled shell (job {job.number})" in waiting.stderr.read()
    _until(lambda: slurm_queue.tasks(job.number)[0].state == "CANCELLED")


def test_a_refused_job_leaves_nothing(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"sbatch refused the job: .*invalid partition") as caught:
        submitted([*words, "launcher.partition=nowhere"], "true")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "jobs").glob("experiments/*/*"))
    assert len(NODES) == 2


def _until(condition, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)
