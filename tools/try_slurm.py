"""Fine-tune on two nodes of a real Slurm cluster, one of which is killed in the middle.

    python -m tools.try_slurm --out slurm.json [--steps 12] [--made FOLDER]

Starts a cluster on this machine (tests/slurm_cluster.py), prepares and imports the bundled data and
model, and fine-tunes twice: undisturbed, and with the second node killed after a checkpoint. Fails
unless the second run resumes and ends at the same loss. Writes what it took.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.core.paths import ROOT
from tests.slurm_cluster import PARTITION, Cluster

POLL_SECONDS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--made", type=Path, help="folder with artifacts of prepare and import")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        words = ["tracking.enabled=false", f"artifacts={folder}/made/artifacts"]
        if given.made:
            shutil.copytree(given.made, folder / "made/artifacts")
        else:
            for stage in ("prepare", "import"):
                _run([f"stage={stage}", *words])
        training = [
            "stage=finetune",
            *words,
            f"finetune.max_steps={given.steps}",
            "finetune.warmup_steps=3",
            "finetune.checkpoint_every=3",
            "finetune.validate_every=1000",
            "finetune.micro_batch_size=4",
            "finetune.global_batch_size=8",
        ]
        one = _train_here(training, folder)
        with Cluster(folder / "slurm") as cluster:
            whole = _train(cluster, training, folder, kill=False)
            killed = _train(cluster, training, folder, kill=True)
    found = {
        "steps": given.steps,
        "one_process": one,
        "two_nodes": whole,
        "two_nodes_one_killed": killed,
        "same_losses": whole["train_loss"] == killed["train_loss"],
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["same_losses"] and killed["restarts"] >= 1 else 1


def _run(words: list[str], environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pipeline", *words]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def _train_here(words: list[str], folder: Path) -> dict[str, Any]:
    start = time.monotonic()
    _run(words)
    return {"seconds": round(time.monotonic() - start, 1), **_taken(folder)}


def _taken(folder: Path) -> dict[str, Any]:
    """The loss of the artifact, which is removed for the next run."""
    place = folder / "made/artifacts/finetune"
    metrics = json.loads((place / "manifest.json").read_text())["metrics"]
    shutil.rmtree(place)
    return {"train_loss": metrics["train_loss"], "training_seconds": metrics.get("seconds")}


def _train(cluster: Cluster, words: list[str], folder: Path, *, kill: bool) -> dict[str, Any]:
    words = [
        *words, "finetune.parallel.processes=2", "launcher=slurm", "launcher.nodes=2",
        "launcher.account=null", f"launcher.partition={PARTITION}", "launcher.gpus=0",
        "launcher.container_image=null", f"launcher.job_folder={folder}/jobs",
        "launcher.wait=true",
    ]  # fmt: skip
    command = [sys.executable, "-m", "pipeline", *words]
    start = time.monotonic()
    at: dict[str, float] = {}
    with subprocess.Popen(
        command, cwd=ROOT, env=cluster.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        job, killed = "", False
        for line in process.stderr:
            sys.stderr.write(line)
            number = re.match(r"job (\d+): (\w+)", line)
            if not number:
                continue
            job, state = number.groups()
            at.setdefault(state, time.monotonic() - start)
            if state == "RUNNING" and kill and not killed:
                killed = True
                _wait_for_checkpoint(folder)
                at["killed"] = time.monotonic() - start
                cluster.kill_node("n2")
            elif state != "RUNNING" and killed and "started" not in at:
                cluster.start_node("n2")
                cluster.start_now(job)
                at["started"] = time.monotonic() - start
        process.wait()
    assert process.returncode == 0, f"the job failed: {process.returncode}"
    logs = sorted((folder / "jobs").rglob(f"log-*_{job}_*.out"))
    resumed = [line for log in logs for line in log.read_text().splitlines() if "resum" in line]
    return {
        "seconds": round(time.monotonic() - start, 1),
        "seconds_until": {state: round(seconds, 1) for state, seconds in at.items()},
        "restarts": len(logs) - 1,
        "resumed": resumed,
        **_taken(folder),
    }


def _wait_for_checkpoint(folder: Path) -> None:
    while not list((folder / "made/artifacts").rglob("progress.json")):
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
