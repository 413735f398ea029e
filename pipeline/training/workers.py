"""Runs a training job in this process or in several, one for each GPU or CPU, on any machines.

torchrun's agent starts the processes and stops all when one fails (pipeline.training.torchrun). The
first rank writes events as lines of JSON to standard output, and this process reads them. If this
process dies, the ranks end too. On the other machines `join` starts the ranks, which get the job
from the first machine.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta

from pipeline.core import errors
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.core.hardware import usable_cores
from pipeline.core.processes import end_with_parent, ends_with_this
from pipeline.training.job import Checkpoints, Job, Point, Trained
from pipeline.training.torchrun import AGENT, JOIN_SECONDS, MARK, MASTER, NODE_RANK, emit

_WORKER = "pipeline.training.workers"
_JOB_KEY = "pipeline/job"  # in the store that all ranks of a job share


def train_in_processes(
    job: Job, report: Callable[[Point], None], *, worker: str = _WORKER
) -> Trained:
    """Train a job in as many processes as it names.

    worker: the module that each rank runs, with the job as its argument.

    Raises:
        PipelineError: as `trainer.train`, or a process died; says which and why.
        ConfigError: the job is for several machines, and this one was not started as one of them.
    """
    if job.parallel.processes == 1 and worker == _WORKER:
        return _train_here(job, report)
    trained, failure, died = None, None, None
    with _ranks(job.nodes, job.parallel.processes, worker, job.to_json()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(MARK):
                continue
            event = json.loads(line.removeprefix(MARK))
            if "point" in event:
                report(Point(**event["point"]))
            elif "trained" in event:
                trained = Trained.from_json(event["trained"])
            elif "died" in event:
                died = event["died"]
            else:
                failure = failure or _failure(event)
        process.wait()
    if failure:
        raise failure
    if trained is None or process.returncode:
        processes = job.parallel.processes
        died = died or f"the {processes} training processes ended ({process.returncode})"
        raise PipelineError(f"{died}; all others were stopped. {_how_to_resume(job)}")
    return trained


def join(*, nodes: int, processes: int, worker: str = _WORKER) -> None:
    """Run this machine's ranks of a job that the machine of node rank 0 leads.

    processes: of all machines.

    Raises:
        PipelineError: they failed, here or there.
    """
    died, failure = None, None
    with _ranks(nodes, processes, worker) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                event = json.loads(line.removeprefix(MARK))
                died = event.get("died", died)
                failure = failure or (_failure(event) if "error" in event else None)
        process.wait()
    if failure:
        raise failure
    if process.returncode:
        raise PipelineError(
            f"{died or 'the training processes of this machine ended'}; see the log of the machine "
            "of node rank 0, and run the same command again to resume"
        )


@contextmanager
def _ranks(
    nodes: int, processes: int, worker: str, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """This machine's processes. They end with the block, and with this process."""
    if nodes > 1 and not {NODE_RANK, MASTER} <= os.environ.keys():
        raise ConfigError(
            f"launcher.nodes={nodes}: run the same command on each of them with launcher=torchrun, "
            f"{NODE_RANK}=0 to {nodes - 1} and {MASTER}=<the first one's address>; or use "
            "launcher=slurm or launcher=kubernetes, which do this"
        )
    here = processes // nodes
    command = [sys.executable, "-m", "pipeline.training.torchrun", str(nodes), str(here), worker]
    threads = max(1, int(usable_cores()) // here)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=ends_with_this(),
    ) as process:
        try:
            yield process
        except BaseException:
            process.terminate()  # the agent then ends its processes
            raise


def _failure(event: dict[str, str]) -> PipelineError:
    """The error that a rank reported."""
    kind: type[PipelineError] = getattr(errors, event["error"])
    return kind(event["message"])


def _how_to_resume(job: Job) -> str:
    step = len(Checkpoints(job.scratch, job.identity).curve())
    if step:
        return f"Run the same command again to resume from the checkpoint of step {step}"
    return "Run the same command again: it starts anew, as there is no checkpoint yet"


def _train_here(job: Job, report: Callable[[Point], None]) -> Trained:
    from pipeline.training.nemo.session import nemo_session

    with nemo_session(job.settings.patches):
        from pipeline.training.nemo.trainer import train

        return train(job, report)


def share_job(given: str | None) -> Job:
    """The job, in every rank: an argument on the first machine, from the store on the others."""
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:  # torchrun's number of machines
        assert given is not None
        return Job.from_json(given)
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, timeout=timedelta(seconds=JOIN_SECONDS))
    if os.environ["RANK"] == "0":
        assert given is not None
        store.set(_JOB_KEY, given)
    return Job.from_json(store.get(_JOB_KEY).decode())


def end_with_agent() -> None:
    """Have this rank killed when the agent that started it ends, for whatever reason.

    A rank that outlived it would wait for the others for ever and keep a GPU busy.
    """
    end_with_parent(int(os.environ[AGENT]))


def _worker(given: str | None) -> int:
    """Run one rank. Rank 0 reports each step and the result; any rank reports its failure."""
    end_with_agent()
    try:
        job = share_job(given)
        trained = _train_here(job, lambda point: emit({"point": asdict(point)}))
    except PipelineError as error:
        emit({"error": type(error).__name__, "message": str(error)})
        return error.exit_code
    if os.environ["RANK"] == "0":
        emit({"trained": trained.to_json()})
    return 0


if __name__ == "__main__":
    code = _worker(sys.argv[1] if len(sys.argv) > 1 else None)
    gc.freeze()  # as in pipeline.__main__
    sys.exit(code)
