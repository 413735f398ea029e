"""A server in a process of its own, for as long as a block of code runs."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.graph import ROOT
from pipeline.serving.address import API_KEY, base_url, listen

READY_SECONDS = 120
STOP_SECONDS = 10
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class RunningServer:
    """url: of the API. start_seconds: from its start to its first answer."""

    url: str
    pid: int
    start_seconds: float

    def peak_memory_bytes(self) -> int:
        """The most that the process has held in memory so far."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
        raise PipelineError(f"the system does not tell the memory of process {self.pid}")


@contextmanager
def running_server(
    engine: Path, *, model: str, log: Path, settings: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """Serve an engine's folder on a free loopback port; gone when the block ends, however it does.

    Args:
        log: file for what the server says.
        settings: of `python -m pipeline.serving`, as serve.key=value.

    Raises:
        PipelineError: it did not become ready; the message ends with its own last words.
    """
    begin = time.monotonic()
    with listen("127.0.0.1", 0) as listening, log.open("wb") as stream:
        url = base_url(listening)
        fd = str(listening.fileno())
        command = [sys.executable, "-m", "pipeline.serving", "--fd", fd]
        command += ["--engine", str(engine.resolve()), "--model", model, *settings]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != API_KEY},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            pass_fds=[listening.fileno()],
            preexec_fn=_end_with_parent,
        )
    try:
        _wait_until_ready(process, url, log)
        yield RunningServer(url, process.pid, time.monotonic() - begin)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """In the child: be stopped when the parent is killed, which leaves it no time to say so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PipelineError(
                f"the server ended with exit code {process.returncode}: {_last_words(log)}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.05)
    raise PipelineError(f"the server was not ready in {READY_SECONDS} s: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = [s for s in log.read_text(errors="replace").splitlines() if '"level": "info"' not in s]
    return " | ".join(lines[-3:]) or "it said nothing"
