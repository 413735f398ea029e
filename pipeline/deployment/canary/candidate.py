"""A server of the candidate, on this machine, for as long as the canary takes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.config.serve import ServeConfig
from pipeline.core.errors import PipelineError
from pipeline.core.paths import ROOT
from pipeline.core.processes import ends_with_this

READY_SECONDS = 30 * 60  # as in the Dockerfile: vLLM and TensorRT-LLM compile while they load
STEP_SECONDS = 0.2
# Settings of the server that the canary gives itself.
OWN = frozenset({"host", "port", "version", "follow", "follow_seconds", "record"})


@dataclass(frozen=True)
class Started:
    """host, port: where the candidate listens, as HAProxy reaches it."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def started(config: Config, number: int, log: Path) -> Iterator[Started]:
    """Serve a registered version with the settings of serve until the block ends, and then finish
    the requests in progress.

    number: of the version. log: file for the server's output.

    Raises:
        PipelineError: it does not become ready; the message has the end of its log.
    """
    host = config.serve.host
    command = [sys.executable, "-m", "pipeline", "stage=serve", f"serve.version={number}",
               f"serve.host={host}", "serve.port=0", *settings_of(config)]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=stream, preexec_fn=ends_with_this(),
        )  # fmt: skip
    try:
        port = _port_when_ready(process, log)
        reached = socket.gethostbyname(socket.gethostname()) if host == "0.0.0.0" else host
        yield Started(reached, port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(config.serve.request_timeout + config.serve.drain_delay + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def settings_of(config: Config) -> list[str]:
    """The words that give another command the same model, registry and server."""
    words = [f"artifacts={config.artifacts}", f"model.name={config.model.name}",
             f"register.name={config.register_.name}"]  # fmt: skip
    if config.register_.store:
        words.append(f"register.store={config.register_.store}")
    if config.tracking.uri and "MLFLOW_TRACKING_URI" not in os.environ:
        words.append(f"tracking.uri={config.tracking.uri}")
    from pipeline.config.defaults import default_config

    usual = default_config({}).serve.model_dump(mode="json")
    given = config.serve.model_dump(mode="json")
    assert given.keys() == ServeConfig.model_fields.keys()
    for name, value in given.items():
        if name not in OWN and value != usual[name]:
            words += _words(f"serve.{name}", value)
    return words


def _words(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [word for name, part in value.items() for word in _words(f"+{key}.{name}", part)]
    return [f"{key}={json.dumps(value)}"]


def _port_when_ready(process: "subprocess.Popen[bytes]", log: Path) -> int:
    """The port, as the server's log names it when it is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        for line in log.read_text(errors="replace").splitlines():
            if '"message": "ready"' in line:
                return int(json.loads(line)["url"].split("//")[1].split("/")[0].rpartition(":")[2])
        if ended:
            lines = [s for s in log.read_text(errors="replace").splitlines() if s.strip()]
            raise PipelineError(
                f"the candidate's server ended with exit code {process.returncode}: "
                f"{' | '.join(lines[-3:]) or 'its log is empty'}"
            )
        time.sleep(STEP_SECONDS)
    raise PipelineError(f"the candidate's server was not ready after {READY_SECONDS} s: see {log}")
