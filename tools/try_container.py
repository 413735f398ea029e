"""Test container images by running them: start, confinement, stop under load, refusals.

    python -m tools.try_container pipeline:cpu pipeline:serve-cpu \\
        --model artifacts/build --out bench/results/container.json

Needs docker, or podman with ENGINE=podman. Ends with exit code 1 at the first check that fails.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.serving.benchmark.load_generator import run_load

ENGINE = os.environ.get("ENGINE", "docker")
LOCKED_DOWN = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges".split()
NAME = "pipeline-trial"
PORT = 18000
STARTS = 5
STREAMS = 16
READY_SECONDS = 600


def engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ENGINE, *arguments], capture_output=True, text=True, check=False)


def check(passed: bool, what: str) -> None:
    """Print the result of a check, and exit if it failed."""
    print(f"{'ok    ' if passed else 'FAILED'} {what}", file=sys.stderr)
    if not passed:
        sys.exit(1)


@contextmanager
def container(image: str, model: Path, *options: str) -> Iterator[float]:
    """Start a server, and remove it when the block ends. Yields its start as monotonic time."""
    engine("rm", "-f", NAME)
    begin = time.monotonic()
    mounts = ["-v", f"{model.resolve()}:/model:ro", "-p", f"127.0.0.1:{PORT}:8000"]
    name = ["--name", NAME, "-e", "NIM_SERVED_MODEL_NAME=model"]
    started = engine("run", "-d", *name, *LOCKED_DOWN, *mounts, *options, image)
    if started.returncode:
        sys.exit(f"{ENGINE} run: {started.stderr}")
    try:
        yield begin
    finally:
        engine("rm", "-f", NAME)


def seconds_to_ready(begin: float) -> float:
    while time.monotonic() - begin < READY_SECONDS:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/ready", timeout=5):
                return time.monotonic() - begin
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    sys.exit(f"not ready after {READY_SECONDS} s: {engine('logs', NAME).stderr}")


def ask(content: str, max_tokens: int) -> dict[str, Any]:
    return {
        "model": "model",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 1.5,  # makes long answers: likely tokens would end them
    }


def try_starts(image: str, model: Path) -> list[float]:
    """Seconds from `run` to a ready server, of several starts."""
    found = []
    for _ in range(STARTS):
        with container(image, model) as begin:
            found.append(round(seconds_to_ready(begin), 2))
    return found


def try_confinement(image: str, model: Path) -> None:
    with container(image, model) as begin:
        seconds_to_ready(begin)
        check(engine("exec", NAME, "id", "-u").stdout.strip() == "1000", "runs as user 1000")
        for place, may in (("/app/x", False), ("/model/x", False), ("/tmp/x", True)):
            wrote = engine("exec", NAME, "touch", place).returncode == 0
            check(wrote == may, f"{'can' if may else 'cannot'} write to {place}")
        (answer,) = run_load(f"http://127.0.0.1:{PORT}/v1", [ask("Hello", 16)], 1).answers
        check(answer.tokens > 0, f"answers: {answer.text!r}")
        health = engine("exec", NAME, "python3", "deploy/healthcheck.py")
        check(health.returncode == 0, "is healthy")


def try_stop_under_load(image: str, model: Path) -> float:
    """Stop it while it streams: every stream must complete. Returns seconds until it stopped."""
    with container(image, model) as begin:
        seconds_to_ready(begin)
        failures: list[str] = []
        answered: list[int] = []

        def load() -> None:
            bodies = [ask(f"Question {n}", 250) for n in range(STREAMS)]
            try:
                level = run_load(f"http://127.0.0.1:{PORT}/v1", bodies, STREAMS)
                answered.extend(answer.tokens for answer in level.answers)
            except PipelineError as error:
                failures.append(str(error))

        clients = threading.Thread(target=load)
        clients.start()
        while not _running():
            time.sleep(0.02)
        running, begin = _running(), time.monotonic()
        engine("stop", "-t", "60", NAME)
        seconds = time.monotonic() - begin
        clients.join()
        check(not failures, f"completes every request when it stops {failures}")
        check(len(answered) == STREAMS and running > 0, f"had {running} requests in progress")
        code = engine("inspect", "-f", "{{.State.ExitCode}}", NAME).stdout.strip()
        check(code == "0", f"ends with exit code {code}")
        return round(seconds, 2)


def _running() -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    (value,) = (line.split()[-1] for line in lines if line.startswith("num_requests_running{"))
    return int(float(value))


def try_stop_at_start(image: str, model: Path) -> None:
    with container(image, model):
        time.sleep(0.3)  # Python runs, but the model is not loaded yet
        begin = time.monotonic()
        engine("stop", "-t", "30", NAME)
        code = engine("inspect", "-f", "{{.State.ExitCode}}", NAME).stdout.strip()
        quick = time.monotonic() - begin < 15
        check(code == "0" and quick, f"stops at once while it starts, with exit code {code}")


def try_refusal(image: str) -> None:
    refused = engine("run", "--rm", *LOCKED_DOWN, "-e", "NIM_SERVER_PORT=80", image)
    last = refused.stderr.strip().splitlines()[-1]
    check(refused.returncode == 2 and "NIM_SERVER_PORT=80" in last, f"refuses: {last}")


def try_image(image: str, model: Path) -> dict[str, Any]:
    print(f"== {image}", file=sys.stderr)
    facts = json.loads(engine("image", "inspect", image).stdout)[0]
    try_refusal(image)
    try_confinement(image, model)
    try_stop_at_start(image, model)
    stop = try_stop_under_load(image, model)
    starts = try_starts(image, model)
    return {
        "image": image.rpartition("/")[2],
        "revision": facts["Config"]["Labels"]["org.opencontainers.image.revision"],
        "bytes": facts["Size"],
        "layers": len(facts["RootFS"]["Layers"]),
        "seconds_to_ready": {"median": statistics.median(starts), "runs": starts},
        "stop_under_load": {"streams": STREAMS, "cut": 0, "seconds": stop, "exit_code": 0},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.try_container", description=__doc__)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="folder of stage=build")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    given = parser.parse_args()
    found = {
        "command": "python -m tools.try_container IMAGE ... --model artifacts/build",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "engine": engine("--version").stdout.strip(),
        "load_average": round(os.getloadavg()[1], 1),
        "images": [try_image(image, given.model) for image in given.images],
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
