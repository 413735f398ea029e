"""Time and memory of stage=import for a model of each family, of about the same bytes.

    python -m bench.import_cost [FAMILY ...]

Each family is imported in a process of its own, which has NeMo's libraries loaded and has imported
a tiny model before: what is measured is the stage, with its check and its proof. Seconds are those
of the CPU. Memory is the most that the process allocated beyond what it had before; pages of the
model's file, which it maps, are not counted, as the kernel takes them back. Random weights in
float32, in which a CPU imports. Families that are named are measured again; the results of the
others are kept. Writes bench/results/import_cost.json.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.origin import ROOT, origin

RESULT = ROOT / "bench" / "results" / "import_cost.json"
PACKAGES = ("nemo_toolkit", "megatron-core", "torch", "transformers")
# Tensors are as large as allocators take from the system one by one, as those of real models are.
BIG = {"hidden_size": 1536, "intermediate_size": 4096, "num_attention_heads": 12, "head_dim": 128}
LAYERS = 12
EXPERT = {"moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024}


def model_of(family: str, folder: Path) -> Path:
    """A model of a family as in the tests, with larger sizes."""
    from tests.integration.family_case import MODELS, make

    made = MODELS[family]
    assert isinstance(made, partial)
    own = dict(made.keywords)
    sizes: dict[str, Any] = {
        name: value for name, value in BIG.items() if own.get(name, value) is not None
    }
    sizes |= {name: value for name, value in EXPERT.items() if name in own}
    if kinds := own.get("layer_types"):
        sizes["layer_types"] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    return make(folder, **own | sizes | {"num_hidden_layers": LAYERS})


def measure(family: str) -> dict[str, float]:
    """Import a model in this process: CPU seconds, bytes, and memory beyond what was there."""
    from pipeline.models.architecture import read_shape
    from pipeline.stages import import_
    from tests.integration.family_case import MODELS

    def run(source: Path, out: Path) -> float:
        out.mkdir()
        model = SimpleNamespace(path=source, name="m", dtype="bfloat16")
        config: Any = SimpleNamespace(model=model, artifacts=out.parent / "artifacts")
        begin = time.process_time()
        import_.run(config, {}, out)
        return time.process_time() - begin

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = model_of(family, folder / "whole")
        run(MODELS[family](folder / "tiny"), folder / "first")
        gc.collect()
        before, most, done = _allocated(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                most[0] = max(most[0], _allocated())

        watcher = threading.Thread(target=watch)
        watcher.start()
        seconds = run(whole, folder / "out")
        done.set()
        watcher.join()
        shape = read_shape(whole)
    return {
        "parameters": shape.parameters,
        "layers": shape.layers,
        "MiB": round(shape.parameters * 4 / 2**20),
        "cpu_seconds": round(seconds, 2),
        "memory_MiB": round((most[0] - before) / 2**20),
        "memory_of_model": round((most[0] - before) / (shape.parameters * 4), 2),
    }


def _allocated() -> int:
    """Bytes of this process's memory that are no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not say RssAnon")


def main() -> None:
    from pipeline.models.families import FAMILIES

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("families", nargs="*", default=[])
    parser.add_argument("--one", action="store_true", help="in this process, to standard output")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.families[0])))
        return
    known = json.loads(RESULT.read_text())["families"] if RESULT.is_file() else {}
    load = os.getloadavg()[0]
    for family in given.families or [name for name in FAMILIES if name not in known]:
        command = [sys.executable, "-m", "bench.import_cost", family, "--one"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        known[family] = json.loads(done.stdout.splitlines()[-1])
        print(family, known[family], flush=True)
    llama = known["llama"]
    for found in known.values():
        each = found["cpu_seconds"] / found["MiB"]
        found["of_llama"] = round(each / (llama["cpu_seconds"] / llama["MiB"]), 2)
    result = {
        **origin("python -m bench.import_cost", PACKAGES),
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "families": {name: known[name] for name in FAMILIES if name in known},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
