"""tritonserver: where it is, how it is started, and its end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipeline.core import hardware
from pipeline.core.errors import ArtifactError, MissingRuntime, PipelineError
from pipeline.core.extras import EXTRAS
from pipeline.core.paths import ROOT
from pipeline.engines.triton.repository import SOURCE

EXTRA = "triton"
STUB = "triton_python_backend_stub"
START_SECONDS = 600  # until every model is loaded
END_SECONDS = 3  # that answers in progress have when it is told to end


# Starts it so that it ends with its parent. Not a preexec_fn: between fork and exec gRPC's threads
# are missing, and Python may crash.
_START = (
    "import os, signal, sys\n"
    "from pipeline.core.processes import end_with_parent\n"
    "end_with_parent(int(sys.argv[1]), signal.SIGTERM)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True)
class Installation:
    """binary: tritonserver. backends: their folder. stub: runs the Python backend's models here.

    stub: None where the installation brings its own.
    """

    binary: Path
    backends: Path
    stub: Path | None = None

    def missing(self, backend: str) -> str | None:
        """Why it cannot run models of a backend; None if it can."""
        if (self.backends / backend).is_dir():
            return None
        return f"Triton has no backend {backend} in {self.backends}"


def find() -> Installation:
    """Triton of this machine: on the PATH, as in NVIDIA's container, or the extra's.

    Raises:
        MissingRuntime: there is none, or not for this version of Python.
    """
    if found := shutil.which("tritonserver"):
        binary = Path(found).resolve()
        return Installation(binary, binary.parents[1] / "backends")
    extra = EXTRAS[EXTRA]
    places = sorted(extra.environment.glob("lib/python3.*/site-packages/pytriton/tritonserver"))
    if not places:
        raise MissingRuntime(
            f"engine=triton needs tritonserver, which is not installed: `{extra.command}`, or run "
            "in NVIDIA's container of Triton"
        )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = places[-1] / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        raise MissingRuntime(
            f"the extra {EXTRA} has no Python backend for Python {version}: use Python 3.11 or 3.12"
        )
    return Installation(places[-1] / "bin/tritonserver", places[-1] / "backends", stub)


def missing() -> str | None:
    """Why models cannot be served here; None if they can."""
    try:
        find()
    except MissingRuntime as error:
        return str(error)
    return None


def environment() -> dict[str, str]:
    """For tritonserver: the Python of this process runs the models of the Python backend.

    Raises:
        MissingRuntime: this Python has no shared library.
    """
    folder, name = (sysconfig.get_config_var(key) for key in ("LIBDIR", "INSTSONAME"))
    if not str(name).startswith("libpython") or not Path(folder, name).is_file():
        raise MissingRuntime(
            f"Triton's Python backend needs libpython, and {sys.executable} has none as a shared "
            "library: use a Python that was built with --enable-shared, as Debian's and uv's are"
        )
    libraries = [folder, os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        # The backend's interpreter ignores PYTHONPATH and takes the first python3 of the PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        SOURCE: str(ROOT),
    }


def command(
    installation: Installation, repository: Path, scratch: Path, options: Sequence[str]
) -> list[str]:
    """Arguments that start it. scratch: a folder for the backends, which must outlive it.

    Raises:
        ArtifactError: there is no repository.
    """
    if not repository.is_dir():
        raise ArtifactError(
            f"{repository} is no model repository: run `python -m pipeline stage=build "
            "engine=triton`"
        )
    backends = installation.backends
    if installation.stub:
        backends = scratch / "backends"
        shutil.rmtree(backends, ignore_errors=True)
        for folder in installation.backends.iterdir():
            (backends / folder.name).mkdir(parents=True)
            for file in folder.iterdir():
                (backends / folder.name / file.name).symlink_to(file)
        (backends / "python" / STUB).symlink_to(installation.stub)
    return [
        str(installation.binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--exit-timeout-secs={END_SECONDS}",
        *(() if hardware.inspect_machine().gpus else ("--allow-gpu-metrics=false",)),
        *options,
    ]


class TritonServer:
    """A tritonserver of this process, on loopback.

    Args:
        repository: of its models. ports: for HTTP, gRPC and metrics. options: further ones.

    Raises:
        MissingRuntime: Triton is not here. ArtifactError: there is no repository.
    """

    def __init__(self, repository: Path, ports: Sequence[int], options: Sequence[str]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="triton-")
        folder = Path(self._scratch.name)
        self.log = folder / "log"
        self.http, self.grpc, self.metrics = ports
        named = zip(("http", "grpc", "metrics"), ports, strict=True)
        addresses = [
            option
            for name, port in named
            for option in (f"--{name}-port={port}", f"--{name}-address=127.0.0.1")
        ]
        self._command = command(find(), repository, folder, [*addresses, *options])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again if it has ended."""
        self._kill_models()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(os.getpid()), *self._command],
                env={**environment(), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def exit_code(self) -> int | None:
        """None as long as it runs."""
        return self._process.poll() if self._process else None

    def wait_until_ready(self) -> None:
        """
        Raises:
            PipelineError: it ended, or a model cannot be loaded; with its reason.
        """
        end = time.monotonic() + START_SECONDS
        url = f"http://127.0.0.1:{self.http}/v2/health/ready"
        while time.monotonic() < end:
            if self.exit_code() is not None:
                raise PipelineError(
                    f"tritonserver ended with exit code {self.exit_code()}: {self.reason()}"
                )
            try:
                if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise PipelineError(f"tritonserver is not ready after {START_SECONDS} s: {self.reason()}")

    def reason(self) -> str:
        """What its log says of an error: its last lines with one."""
        lines = self.log.read_text(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("E") or "rror" in line] or lines
        return " | ".join(line.strip() for line in said[-3:])[:1000]

    def close(self) -> None:
        """End it; answers in progress have some seconds."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS + 5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._kill_models()
        self._scratch.cleanup()

    def _kill_models(self) -> None:
        """End what a server that was killed has left: the processes of its models."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
