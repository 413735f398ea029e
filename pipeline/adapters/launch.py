"""Runs a training job in this process, or in several, one a GPU (or CPU), on this machine.

torchrun starts the processes and ends all when one fails. The first rank writes what happens as
lines of JSON to standard output, where this process reads it; should this one die, they end too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from ctypes import CDLL
from dataclasses import asdict

from pipeline import errors
from pipeline.errors import PipelineError
from pipeline.training import Job, Point, Trained

MARK = "pipeline-event "  # what begins a line of ours among what libraries print
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def train_in_processes(job: Job, report: Callable[[Point], None]) -> Trained:
    """Train, in as many processes as the job asks for.

    Raises:
        PipelineError: as `nemo_training.train`, or a process died.
    """
    if job.processes == 1:
        return _train_here(job, report)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={job.processes}", "-m", "pipeline.adapters.launch", job.to_json(),
    ]  # fmt: skip
    threads = max(1, (os.cpu_count() or 1) // job.processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}
    libc = CDLL(None)
    trained, failure = None, None
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not line.startswith(MARK):
                    continue
                event = json.loads(line.removeprefix(MARK))
                if "point" in event:
                    report(Point(**event["point"]))
                elif "trained" in event:
                    trained = Trained.from_json(event["trained"])
                else:
                    failure = getattr(errors, event["error"])(event["message"])
            process.wait()
        except BaseException:
            process.terminate()  # torchrun then ends its processes
            raise
    if failure:
        raise failure
    if trained is None or process.returncode:
        raise PipelineError(
            f"one of the {job.processes} training processes died (exit code {process.returncode}): "
            "its last lines are above; run the same command again to go on from the last checkpoint"
        )
    return trained


def _train_here(job: Job, report: Callable[[Point], None]) -> Trained:
    from pipeline.adapters.nemo import nemo_session

    with nemo_session():
        from pipeline.adapters.nemo_training import train

        return train(job, report)


def _emit(event: dict[str, object]) -> None:
    print(MARK + json.dumps(event), flush=True)


def _worker(job: Job) -> int:
    """One rank. Rank 0 tells of each step and of the result; any rank tells of its failure."""
    try:
        trained = _train_here(job, lambda point: _emit({"point": asdict(point)}))
    except PipelineError as error:
        _emit({"error": type(error).__name__, "message": str(error)})
        return error.exit_code
    if os.environ["RANK"] == "0":
        _emit({"trained": trained.to_json()})
    return 0


if __name__ == "__main__":
    sys.exit(_worker(Job.from_json(sys.argv[1])))
