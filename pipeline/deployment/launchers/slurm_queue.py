"""A submitted job: its states and its log, until it ends, and its end by Ctrl-C."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.console import get_console
from pipeline.core.errors import PipelineError
from pipeline.deployment.launchers.slurm import Submitted

POLL_SECONDS = 2.0
# Of a job that ended. Others are on their way: PENDING, RUNNING, COMPLETING, REQUEUED …
ENDED = (
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT"
).split()


@dataclass(frozen=True)
class Task:
    """A job, or one task of an array, as scontrol shows it. code: its exit code."""

    name: str
    state: str
    reason: str
    nodes: str
    code: int
    restarts: int

    def __str__(self) -> str:
        if self.state == "PENDING":
            return f"PENDING ({self.reason})"
        on = f" on {self.nodes}" if self.nodes else ""
        again = f", start {self.restarts + 1}" if self.restarts else ""
        failed = f", exit code {self.code}" if self.state in ENDED and self.code else ""
        return f"{self.state}{on}{again}{failed}"


def tasks(number: str) -> list[Task]:
    """The tasks of a job, as Slurm's controller knows them; none when it has forgotten them.

    Raises:
        PipelineError: the controller does not answer.
    """
    done = subprocess.run(
        ["scontrol", "show", "job", "-o", number], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return []
        raise PipelineError(f"scontrol failed: {' '.join(done.stderr.split())}")
    return [_task(line) for line in done.stdout.splitlines() if line.startswith("JobId=")]


def _task(line: str) -> Task:
    fields = dict(re.findall(r"(\w+)=(\S*)", line))
    index = fields.get("ArrayTaskId", "")
    name = fields["JobId"]
    if index:
        name = f"{fields['ArrayJobId']}_{index}"
    nodes = fields.get("NodeList", "")
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    return Task(
        name=name,
        state=fields["JobState"],
        reason=fields.get("Reason", ""),
        nodes="" if nodes == "(null)" else nodes,
        code=int(code) or (128 + int(signal) if int(signal or 0) else 0),
        restarts=int(fields.get("Restarts", 0)),
    )


def follow(job: Submitted, name: str) -> list[Task]:
    """Show what a job does until all of its tasks have ended. Ctrl-C cancels it.

    Returns:
        The tasks, as they ended.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C, and the job was cancelled.
        PipelineError: the controller does not answer.
    """
    shown: dict[str, str] = {}
    log = _Log(job)
    known: list[Task] = []
    try:
        while True:
            known = tasks(job.number) or known
            log.show()
            for task in known:
                if shown.get(task.name) != str(task):
                    shown[task.name] = str(task)
                    get_console().print(f"job {task.name}: {task}", soft_wrap=True, markup=False)
            if known and all(task.state in ENDED for task in known):
                log.show()
                return known
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        cancel(job.number)
        get_console().print(f"cancelled {name} (job {job.number})", soft_wrap=True)
        raise


def cancel(number: str) -> None:
    """End a job, or take it out of the queue."""
    subprocess.run(["scancel", number], capture_output=True, timeout=60)


def require_success(ended: list[Task], job: Submitted) -> None:
    """
    Raises:
        PipelineError: a task failed; with the exit code of its command.
    """
    failed = [task for task in ended if task.state != "COMPLETED"]
    if failed:
        first = failed[0]
        error = PipelineError(
            f"job {first.name} ended as {first}: see {job.logs()[-1:] or job.folder}"
        )
        error.exit_code = first.code if 0 < first.code < 10 else 1
        raise error


class _Log:
    """What a job's command wrote, as far as it was not shown yet."""

    def __init__(self, job: Submitted) -> None:
        self._job = job
        self._shown: dict[Path, int] = {}

    def show(self) -> None:
        for text in self._new():
            sys.stdout.write(text)
        sys.stdout.flush()

    def _new(self) -> Iterator[str]:
        for file in self._job.logs():
            with file.open("rb") as opened:
                opened.seek(self._shown.get(file, 0))
                text = opened.read()
                self._shown[file] = opened.tell()
            if text:
                yield text.decode(errors="replace")
