"""Ranks on one machine and on several: one that dies takes all with it, and the message says which.

The ranks sum over gloo and need no NeMo: what is tested is what starts and watches them.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.core.errors import ConfigError, PipelineError
from pipeline.training import workers as launch
from pipeline.training.job import Checkpoints, Job, Point
from tests.finetune_settings import finetune_settings

WORKER = "tests.integration.rank"


def make_job(folder: Path, **changes: Any) -> Job:
    nodes = changes.pop("nodes", 1)
    settings = finetune_settings(max_steps=3, global_batch_size=2, processes=2)
    return Job(
        settings=finetune_settings(settings, **changes),
        hf=folder, weights=None, train_rows=folder, validation_rows=None,
        scratch=folder / "scratch", out=folder, seed=0, max_length=8, nodes=nodes,
    )  # fmt: skip


def test_a_rank_that_is_killed_stops_all_and_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path, max_steps=2000)
    point = Point(5, 1.0, 0.0, 0.0, 0.0)
    with Checkpoints(job.scratch, job.identity).writing(5, [point] * 5, main=True):
        pass
    killed: list[tuple[int, float]] = []

    def kill(point: Point) -> None:
        if point.step == 3:
            killed.append((int(point.loss), time.monotonic()))
            os.kill(int(point.loss), signal.SIGKILL)

    with pytest.raises(PipelineError) as caught:
        launch.train_in_processes(job, kill, worker=WORKER)
    ((process, since),) = killed
    assert time.monotonic() - since < 60
    said = str(caught.value)
    assert f"rank 1 of 2 (process {process}) was killed by SIGKILL" in said
    assert "all others were stopped" in said
    assert "to resume from the checkpoint of step 5" in said
    assert "\n" not in said


def test_ranks_end_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    found: list[psutil.Process] = []

    def kill(point: Point) -> None:
        if point.step == 3:
            rank = psutil.Process(int(point.loss))
            agent = rank.parent()
            assert agent is not None
            found.extend(agent.children())
            agent.kill()

    with pytest.raises(PipelineError, match=r"the 2 training processes ended \(-9\)"):
        launch.train_in_processes(make_job(tmp_path, max_steps=2000), kill, worker=WORKER)
    assert len(found) == 2
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive


def test_two_machines_train_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are this one: the first leads with the job, the second only knows where the first is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PET_MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("PET_MASTER_PORT", str(port))
    monkeypatch.setenv("PET_NODE_RANK", "0")
    join = (
        f"from pipeline.training.workers import join; join(nodes=2, processes=2, worker={WORKER!r})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", join], env={**os.environ, "PET_NODE_RANK": "1"}
    ) as second:
        points: list[Point] = []
        job = make_job(tmp_path, nodes=2)
        trained = launch.train_in_processes(job, points.append, worker=WORKER)
        assert second.wait(300) == 0
    assert trained.trainable_parameters == 2  # the ranks that took part
    assert [p.step for p in points] == [1, 2, 3]


def test_several_machines_need_to_know_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PET_NODE_RANK", raising=False)
    with pytest.raises(ConfigError, match=r"launcher\.nodes=2: run the same command on each"):
        launch.train_in_processes(make_job(tmp_path, nodes=2), lambda point: None, worker=WORKER)
