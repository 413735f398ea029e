"""Time and memory of every stage for an 8 B model on one GPU host; baselines: cp and ModelOpt.

    python bench/gpu_hops.py --work /scratch/hops --output bench/results/gpu_hops.json

Creates random weights of Llama-3-8B's shape and runs the stages' code on them, each in its own
process: import, two steps of LoRA from the checkpoint, merge, FP8 calibration on 512 rows of 1024
tokens, export of both formats, qnemo for two and for four ranks. `cp` copies the same bytes on the
same disk; both are followed by a sync. The recipe is ModelOpt's for HF models: load, quantize,
export_hf_checkpoint. Needs 64 GB of disk; removes what later stages do not read.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.hops import HOPS  # noqa: E402
from bench.origin import origin  # noqa: E402

PACKAGES = ("torch", "transformers", "nemo_toolkit", "megatron-core", "nvidia-modelopt")
MARK = "HOP "


def anonymous_bytes(process: psutil.Process) -> int:
    """Anonymous memory of a process and its children."""
    total = 0
    try:
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for each in processes:
        try:
            for line in Path(f"/proc/{each.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += 1024 * int(line.split()[1])
        except OSError:
            continue
    return total


def run_hop(name: str, work: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--work", str(work), "--hop", name]
    peak = [0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)

        def watch() -> None:
            while process.poll() is None:
                peak[0] = max(peak[0], anonymous_bytes(watched))
                time.sleep(0.1)

        threading.Thread(target=watch, daemon=True).start()
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    if process.returncode:
        return {"error": f"exit code {process.returncode}", "said": lines[-5:]}
    result = json.loads(next(x for x in lines if x.startswith(MARK)).removeprefix(MARK))
    seconds = time.perf_counter() - begin
    return {"process_seconds": seconds, "host_memory_gib": peak[0] / 2**30, **result}


def copy(work: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", str(work / "hf"), str(work / "copy")], check=True)
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - begin


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with 64 GB free")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--commit", help="of the source tree, if git is not available")
    parser.add_argument("--hop", choices=HOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work
    if arguments.hop:
        print(MARK + json.dumps(HOPS[arguments.hop][0](work)))
        return
    work.mkdir(parents=True)
    found: dict[str, Any] = {}
    for name, (_, finished) in HOPS.items():
        found[name] = rounded(run_hop(name, work))
        if name == "make":
            found["cp"] = [round(copy(work), 2)]
            shutil.rmtree(work / "copy")
            found["cp"].append(round(copy(work), 2))
            shutil.rmtree(work / "copy")
        print(name, json.dumps(found[name]), found.get("cp") if name == "make" else "", flush=True)
        for folder in finished:
            shutil.rmtree(work / folder, ignore_errors=True)
        document = {
            **origin("python bench/gpu_hops.py", PACKAGES, arguments.commit),
            "hops": found,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
