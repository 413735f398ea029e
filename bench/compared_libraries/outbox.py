"""MLflow's asynchronous logging beside our outbox: what tracking takes, and loses.

A training of some points is tracked by a server that answers, that is away, and that takes
connections and never answers; and it is killed behind its last point. MLflow is tried whole and as
mlflow-skinny, which comes without the database that our default store is.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.compared_libraries import outbox_training
from bench.compared_libraries.code_lines import code_lines
from bench.compared_libraries.timing import import_ms
from bench.origin import ROOT
from pipeline.tracking import outbox, sender_process

POINTS = 200
ROUNDS = 3
LONGEST_SECONDS = 90
ARRIVAL_SECONDS = 60
# As our sender sets them; MLflow's own are seven tries and two minutes.
QUICK = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def measure(skinny: Path) -> dict[str, Any]:
    """skinny: a Python whose environment holds mlflow-skinny and what that needs."""
    ways = {"ours": sys.executable, "mlflow": sys.executable, "mlflow-skinny": str(skinny)}
    # Senders of ours may still write into the folder when it is removed.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made,
        server(Path(made)) as uri,
        silent() as mute,
    ):
        away = f"http://127.0.0.1:{free_port()}"
        folder = Path(made)

        def in_situation(place: str, dies: bool = False) -> dict[str, Any]:
            return {
                way: summary([tracked(way, python, place, folder, dies) for _ in range(ROUNDS)])
                for way, python in ways.items()
            }

        found = {
            "a server that answers": in_situation(uri),
            "killed behind the last point": in_situation(uri, dies=True),
            "a server that is away": in_situation(away),
            "a server that never answers": in_situation(mute),
        }
        store = f"sqlite:///{folder}/of_skinny.db"
        on_sqlite = tracked("mlflow-skinny", str(skinny), store, folder)
    imports = import_ms({"ours": "import pipeline.tracking.client", "mlflow": "import mlflow"})
    imports |= import_ms({"mlflow-skinny": "import mlflow"}, str(skinny))
    return {
        "points": POINTS,
        "rounds": ROUNDS,
        "longest_seconds": LONGEST_SECONDS,
        **found,
        "mlflow-skinny on our default store": on_sqlite.get("raised"),
        "import_ms": imports,
        # The rest of the tracking (what becomes which tag, note or figure) is needed either way.
        "lines_of_code": {"ours": code_lines(outbox, sender_process)},
    }


def tracked(way: str, python: str, uri: str, folder: Path, dies: bool = False) -> dict[str, Any]:
    """One training: seconds until it begins and from its last point to its end, and its points that
    the server has in the end or that wait in the outbox."""
    place = Path(tempfile.mkdtemp(prefix="training-", dir=folder))
    script = outbox_training.__file__
    words = [python, script, "ours" if way == "ours" else "async", str(place), str(POINTS)]
    environment = {**os.environ, **QUICK, "MLFLOW_TRACKING_URI": uri}
    environment |= {"DIES": "1"} if dies else {}
    if way == "ours":
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    begin = time.time()
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        output, _ = process.communicate(timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    end = time.time()
    own = [line for line in output.splitlines() if line[:1] == "{"]  # MLflow says something too
    said = json.loads(own[-1]) if own else {}
    result = {name: said[name] for name in ("raised",) if name in said}
    if "began" in said:
        result["seconds_until_it_begins"] = said["began"] - begin
    if "last_point" in said:
        result["seconds_from_last_point_to_end"] = end - said["last_point"]
    result["points_kept"] = kept(uri, place)
    return result


def kept(uri: str, place: Path) -> int:
    """Points of a training that its server has once no more come; of one that has none, points
    that wait in the outbox."""
    spools = list(place.rglob("spool"))
    waiting = [line for folder in spools for file in folder.glob("*.jsonl") for line in file.open()]
    if not is_mlflow(uri):
        return sum(json.loads(line)["event"] == "metrics" for line in waiting)
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while any(file for folder in spools for file in folder.glob("*.jsonl")):
        assert time.monotonic() < deadline, f"the outbox in {place} is not sent"
        time.sleep(0.2)
    return points_at(uri, place.name)


def is_mlflow(uri: str) -> bool:
    try:
        return urllib.request.urlopen(f"{uri}/health", timeout=1).status == 200
    except (OSError, ValueError):  # away, silent, or a file
        return False


def points_at(uri: str, experiment: str) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    if not (known := client.get_experiment_by_name(experiment)):
        return 0
    runs = client.search_runs([known.experiment_id])
    return sum(len(client.get_metric_history(run.info.run_id, "loss")) for run in runs)


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The least of figures, and the first of texts."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in rounds for name in one):
        values = [one[name] for one in rounds if name in one]
        is_text = isinstance(values[0], str)
        found[name] = values[0] if is_text else round(min(values), 3)
    return found


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """MLflow's own, on SQLite."""
    port = free_port()
    uri, store = f"http://127.0.0.1:{port}", f"sqlite:///{folder}/server.db"
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "files")]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers and job runners too
        process.wait()


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
