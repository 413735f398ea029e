"""Time of `make demo` from a fresh clone, and of commands that should return at once.

    python bench/cpu_chain.py [--output bench/results/cpu_chain.json]

Clones the committed tree into a temporary folder and runs `make demo` there (packages come from the
caches of pip and uv). Then times an idle `dvc repro`, the help, the doctor and refused commands:
the median of five processes each. Needs only the standard library.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.origin import ROOT, origin

RUNS = 5
PACKAGES = (
    "nemo_toolkit", "megatron-core", "torch", "transformers", "nvidia-modelopt", "onnxruntime",
    "onnxruntime-genai", "mlflow", "dvc",
)  # fmt: skip
QUICK = {
    "dvc repro, nothing to do": ["dvc", "repro"],
    "--help": ["python", "-m", "pipeline", "--help"],
    "stage=doctor": ["python", "-m", "pipeline", "stage=doctor"],
    "stage=plan": ["python", "-m", "pipeline", "stage=plan"],
    "refused stage": ["python", "-m", "pipeline", "stage=nothing"],
    "refused option": ["python", "-m", "pipeline", "stage=all", "quantize=int5"],
    "refused range": ["python", "-m", "pipeline", "stage=all", "seed=-1"],
    "up-to-date stage": ["python", "-m", "pipeline", "stage=finetune"],
}
LIMITS = {"dvc repro, nothing to do": 3.0, "up-to-date stage": None}  # seconds; 1.5 for the others


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, int]:
    """Seconds from start to end of a process, and its exit code."""
    begin = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return round(time.monotonic() - begin, 2), done.returncode


def loud(command: list[str], folder: Path) -> float:
    """Seconds of a command that must succeed. Shows its output."""
    begin = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    return round(time.monotonic() - begin, 1)


def measure(folder: Path) -> dict[str, Any]:
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    seconds = {
        "make setup": loud(["make", "setup"], clone),
        "make demo": loud(["make", "demo"], clone),
    }
    seconds["fresh clone to the end of make demo"] = round(sum(seconds.values()), 1)
    summary = json.loads((clone / "artifacts" / "summary.json").read_text())
    path = f"{clone / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    quick = {}
    for name, command in QUICK.items():
        runs = [timed(command, clone, environment)[0] for _ in range(RUNS + 1)][1:]
        limit = LIMITS.get(name, 1.5)
        quick[name] = {"median": statistics.median(runs), "runs": runs, "limit": limit}
    read = "import sys, importlib.metadata as m, json; "
    read += "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    versions = subprocess.run(
        [clone / ".venv/bin/python", "-c", read, *PACKAGES],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "versions": json.loads(versions.stdout),
        "seconds": seconds,
        "quick_seconds": quick,
        "stages": {
            name: {"seconds": s["seconds"], "peak_memory_bytes": s["peak_memory_bytes"]}
            for name, s in summary["stages"].items()
        },
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "accuracy": {n: m["exact_match"] for n, m in summary["accuracy"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/cpu_chain.json")
    output = parser.parse_args().output
    begun = origin("python bench/cpu_chain.py", ())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    result = {**begun, **found}  # with the versions of the clone's packages
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"seconds": result["seconds"], "quick": result["quick_seconds"]}, indent=1))


if __name__ == "__main__":
    main()
