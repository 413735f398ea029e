"""The sender process: sends the outbox of one destination to MLflow, and ends when it is empty.

    python -m pipeline.tracking.sender_process artifacts

Every run starts it. Run it yourself to send what an earlier run could not send.

Only the process that has the lock imports MLflow (pipeline/tracking/mlflow_sender.py).
"""

import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import PipelineError
from pipeline.core.secrets import mask
from pipeline.tracking.outbox import Destination

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_sender import Sender

POLL_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
PATIENCE_SECONDS = 60.0  # it gives up after failing for so long, if no pipeline run is open
LOG_BYTES = 2**20
NICENESS = 10
# No telemetry, no advice about git, and an unreachable server is detected within seconds.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def main(artifacts: Path, lock: int | None = None) -> int:
    """Send the outbox below `artifacts`. Returns 0 if everything was sent, else 1.

    lock: file descriptor of the sender's lock, if the parent process has acquired it.
    """
    try:
        destination = Destination.of(artifacts)
    except ValueError as error:  # of an address that cannot be read
        print(f"MLFLOW_TRACKING_URI is no address ({reason(error)})", file=sys.stderr)
        return 1
    os.nice(NICENESS)
    while not destination.is_empty():
        if lock is None:
            lock = destination.try_lock()
        if lock is None:
            print(f"another process already sends {destination.folder}", file=sys.stderr)
            return 0
        if not _send_until_empty(destination):
            print(f"not sent: {destination.last_error()}", file=sys.stderr)
            return 1
        os.close(lock)
        lock = None
    return 0


def set_up() -> None:
    """Set MLflow's variables that the user has not set. Call it before importing MLflow."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _send_until_empty(destination: Destination) -> bool:
    """Send while pipeline runs are open. False if sending keeps failing after they end."""
    set_up()
    _shorten(destination.folder / "sender.log")
    last_error = destination.folder / "last_error.txt"
    last_error.unlink(missing_ok=True)

    sender: Sender | None = None
    pause, last_success = POLL_SECONDS, time.monotonic()
    while True:
        is_open = any(group.is_open() for group in destination.groups())
        try:
            sender = sender or _new_sender(destination)
            if not sender.send_all():
                return True
            last_error.unlink(missing_ok=True)
            pause, last_success = POLL_SECONDS, time.monotonic()
        except Exception as error:  # anything that a store, a network or a proxy can raise
            line = reason(error)
            last_error.write_text(line)
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=sys.stderr, flush=True)
            if not is_open and time.monotonic() - last_success > PATIENCE_SECONDS:
                return False
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
        time.sleep(pause)


def _new_sender(destination: Destination) -> "Sender":
    from pipeline.tracking.mlflow_sender import Sender

    return Sender(destination)


def reason(error: BaseException) -> str:
    """One line about the root cause, e.g. that a connection was refused."""
    if isinstance(error, PipelineError):
        return mask(str(error))
    while cause := error.__cause__ or error.__context__:
        error = cause
    words = mask(" ".join(str(error).split()))
    again = ""
    if isinstance(error, sqlite3.DatabaseError) and "malformed" in words:
        again = ": put back a backup of the store, or move it away to start a new one"
    return f"{type(error).__name__}: {words[:200]}{again}"


def _shorten(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES:
        os.truncate(log, 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), lock=0 if "--locked" in sys.argv else None))
