"""Power and clock of the GPUs while a command trains on them.

    python bench/gpu_power.py --output bench/results/gpu_power.json -- \\
        python bench/gpu_training.py lora-bf16-b4 --output /tmp/training.json

Samples each GPU twice a second with nvidia-smi. Only samples at 100 % utilization and above
BUSY_WATTS count. That leaves out the start, when the GPU waits and kernels are compiled.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.origin import origin, parser_of

BUSY_WATTS = 500
FIELDS = "utilization.gpu,power.draw,clocks.sm"
LIMITS = "power.limit,clocks.max.sm"


def ask(query: str) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]


def samples_during(command: list[str]) -> list[tuple[float, ...]]:
    """Utilization in percent, watts and MHz of the busy GPUs while the command runs."""
    sampling = [*ask(FIELDS), "-lms", "500"]
    with subprocess.Popen(sampling, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            subprocess.run(command, check=True)
        finally:
            sampler.terminate()
        assert sampler.stdout
        lines = [line.split(", ") for line in sampler.stdout]
    return [tuple(map(float, line)) for line in lines if len(line) == len(FIELDS.split(","))]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("command", nargs="+", help="after --")
    given = parser.parse_args()
    most = subprocess.run(ask(LIMITS), capture_output=True, text=True, check=True).stdout
    watts, clock = (float(x) for x in most.splitlines()[0].split(", "))
    busy = [s for s in samples_during(given.command) if s[0] == 100 and s[1] > BUSY_WATTS]
    if not busy:
        sys.exit(f"no GPU was in full use: {' '.join(given.command)}")
    document: dict[str, Any] = {
        **origin(f"python bench/gpu_power.py -- {' '.join(given.command)}", (), given.commit),
        "samples in full use": len(busy),
        "power_w": {"median": statistics.median(s[1] for s in busy), "limit": watts},
        "sm_clock_mhz": {"median": statistics.median(s[2] for s in busy), "highest": clock},
    }
    given.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
