"""The sender process: carries one destination's spool to MLflow, and ends when nothing is left.

    python -m pipeline.tracking.sender_process artifacts

Every run starts it. By hand it sends what waits.

MLflow is imported only by the one process that holds the lock (pipeline/tracking/mlflow_sender.py).
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import PipelineError
from pipeline.tracking.outbox import Destination, mask

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_sender import Sender

POLL_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
PATIENCE_SECONDS = 60.0  # of failing, once no pipeline run is open
LOG_BYTES = 2**20
NICENESS = 10
# No telemetry, no advice about git, and a server that is away is told within seconds.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def main(artifacts: Path, lock: int | None = None) -> int:
    """Send everything that waits below `artifacts`; 0 when it is sent, 1 when it still waits.

    lock: descriptor of the sender's lock when the process that started this one holds it.
    """
    place = Destination.of(artifacts)
    os.nice(NICENESS)
    while not place.is_empty():
        if lock is None:
            lock = place.try_lock()
        if lock is None:
            print(f"another process is sending {place.folder}", file=sys.stderr)
            return 0
        if not _send_until_empty(place):
            print(f"not sent: {place.trouble()}", file=sys.stderr)
            return 1
        os.close(lock)
        lock = None
    return 0


def set_up() -> None:
    """Set MLflow's variables where the user has not: before it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _send_until_empty(place: Destination) -> bool:
    """Send while pipeline runs are open; False when sending fails for too long after them."""
    set_up()
    _shorten(place.folder / "sender.log")
    trouble = place.folder / "trouble.txt"
    trouble.unlink(missing_ok=True)

    sender: Sender | None = None
    pause, last_success = POLL_SECONDS, time.monotonic()
    while True:
        is_open = any(group.is_open() for group in place.groups())
        try:
            sender = sender or _new_sender(place)
            if not sender.send_all():
                return True
            trouble.unlink(missing_ok=True)
            pause, last_success = POLL_SECONDS, time.monotonic()
        except Exception as error:  # whatever a store, a network or a proxy can raise
            line = reason(error)
            trouble.write_text(line)
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=sys.stderr, flush=True)
            if not is_open and time.monotonic() - last_success > PATIENCE_SECONDS:
                return False
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
        time.sleep(pause)


def _new_sender(place: Destination) -> "Sender":
    from pipeline.tracking.mlflow_sender import Sender

    return Sender(place)


def reason(error: BaseException) -> str:
    """One line about the error at the root, e.g. that a connection was refused."""
    if isinstance(error, PipelineError):
        return mask(str(error))
    while cause := error.__cause__ or error.__context__:
        error = cause
    words = mask(" ".join(str(error).split()))
    return f"{type(error).__name__}: {words[:200]}"


def _shorten(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES:
        os.truncate(log, 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), lock=0 if "--locked" in sys.argv else None))
