"""Jobs on a real Slurm cluster of two nodes: states, logs and exit codes come back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.deployment.launchers import slurm, slurm_queue
from pipeline.deployment.launchers.job import JobSpec
from tests.slurm_cluster import PARTITION, Cluster, needs_slurm
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
