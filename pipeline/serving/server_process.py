"""A server in a child process that runs for the duration of a block: benchmarks and tests."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.core.errors import PipelineError
from pipeline.core.paths import ROOT
from pipeline.core.processes import ends_with_this
from pipeline.serving.address import API_KEY, base_url, listen

READY_SECONDS = 30 * 60  # as in the Dockerfile: vLLM and TensorRT-LLM compile while they load
STOP_SECONDS = 10


@dataclass(frozen=True)
class RunningServer:
    """url: the API's base URL. start_seconds: from the start of the process until it was ready."""

    url: str
    pid: int
    start_seconds: float

    def peak_memory_bytes(self) -> int:
        """Peak memory so far of the server and its child processes, one of which has the model.

        It is the sum of each process's own peak, so shared pages count several times.

        Raises:
            PipelineError: the system does not report it.
        """
        try:
            server = psutil.Process(self.pid)
            peaks = [_peak(process.pid) for process in (server, *server.children(recursive=True))]
        except psutil.Error as error:
            raise PipelineError(f"process {self.pid} cannot be inspected: {error}") from error
        if not peaks[0]:
            raise PipelineError(f"the system does not report the memory of process {self.pid}")
        return sum(peaks)


def _peak(pid: int) -> int:
    """Peak resident bytes of a process; 0 if it has ended or the system does not report them."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = (1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return next(found, 0)


@contextmanager
def running_server(
    engine: Path, *, model: str, log: Path, settings: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """Serve an engine's folder on a free loopback port, and stop the server when the block ends.

    Args:
        log: file for the server's output.
        settings: settings for `python -m pipeline.serving`, as serve.key=value.

    Raises:
        PipelineError: the server did not become ready; the message has the end of its log.
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
            preexec_fn=ends_with_this(),
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


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PipelineError(
                f"the server ended with exit code {process.returncode}: {_log_tail(log)}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.05)
    raise PipelineError(f"the server was not ready after {READY_SECONDS} s: {_log_tail(log)}")


def _log_tail(log: Path) -> str:
    lines = [s for s in log.read_text(errors="replace").splitlines() if '"level": "info"' not in s]
    return " | ".join(lines[-3:]) or "its log is empty"
