"""Save a full fine-tune of as many layers as fit on one H200, and resume it in another process.

    python bench/gpu_saving.py --work /tmp/saving --output bench/results/gpu_saving.json

Runs two processes, one after the other, with the shape of gpu_training.py, 26 layers and two rows
per micro-batch. The first trains three steps and saves after the second; the other resumes with the
third. The losses of the third step must be equal. Needs 94 GB of disk, which it frees, and 112 GiB
of memory.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu_training import PACKAGES, job_of  # noqa: E402
from bench.origin import origin, parser_of  # noqa: E402
from pipeline.training.job import Job, Point  # noqa: E402

CASE, SAVED, LAST = "sft-bf16-b2-l26", 2, 3


class Enough(Exception):
    """Stops a run after its last step."""


def train(job: Job) -> dict[str, Any]:
    """Measures this process: its steps, the host's memory, and the time and size of saving."""
    import torch

    from pipeline.core.monkeypatch import Replacement, replaced
    from pipeline.training.nemo.session import nemo_session

    steps: list[dict[str, float]] = []
    begin = time.monotonic()

    def report(point: Point) -> None:
        peak = torch.cuda.max_memory_allocated() / 2**30
        steps.append(
            {
                "step": point.step,
                "loss": point.loss,
                "seconds": round(time.monotonic() - begin, 1),
                "peak_memory_gib": round(peak, 1),
            }
        )
        if point.step == LAST:
            raise Enough

    try:
        with nemo_session():
            from pipeline.training.nemo import callbacks as nemo_recorder
            from pipeline.training.nemo import trainer as nemo_training

            with replaced([Replacement(nemo_recorder, "GPU_REPORT_EVERY", 1)]):
                nemo_training.train(job, report)
    except Enough:
        pass
    return {
        "steps": steps,
        "host_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        "bytes": sum(f.stat().st_size for f in job.scratch.rglob("*") if f.is_file()),
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--job", type=Path, help="output of one of the two processes")
    given = parser.parse_args()
    if given.job:
        found = train(Job.from_json(given.job.read_text()))
        given.output.write_text(json.dumps(found))
        return 0
    shutil.rmtree(given.work, ignore_errors=True)
    job = job_of(CASE, given.work, reports=2)
    job = replace(job, settings=job.settings.but(checkpoint_every=SAVED))
    file = given.work / "job.json"
    file.write_text(job.to_json())
    runs = {}
    for name in ("saves", "goes_on"):
        found = given.work / f"{name}.json"
        command = [sys.executable, __file__, "--work", given.work, "--job", file, "--output", found]
        subprocess.run(command, check=True)
        runs[name] = json.loads(found.read_text())
    shutil.rmtree(given.work)
    command_line = f"python bench/gpu_saving.py --work {given.work}"
    document = {**origin(command_line, PACKAGES, given.commit), "case": CASE, "runs": runs}
    given.output.write_text(json.dumps(document, indent=1) + "\n")
    losses = {run["steps"][-1]["loss"] for run in runs.values()}
    return len(losses) - 1


if __name__ == "__main__":
    sys.exit(main())
