"""Every hop of an 8 B model on one GPU host: seconds and memory, beside `cp` and ModelOpt's recipe.

    python bench/gpu_hops.py --work /scratch/hops --output bench/results/gpu_hops.json

Makes random weights of Llama-3-8B's shape, then runs the stages' own code on them, each in a
process of its own: import, two steps of LoRA from the checkpoint, merge, FP8 calibration on 512
rows of 1024 tokens, export. `cp` copies the same bytes on the same disk; both are followed by a
sync. The recipe is ModelOpt's for HF models: load, quantize, export_hf_checkpoint. Needs 64 GB of
disk; what a later hop does not read is removed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu_training import VOCABULARY, model_folder  # noqa: E402

CALIBRATION_ROWS, CALIBRATION_TOKENS = 512, 1024
PACKAGES = ("torch", "transformers", "nemo_toolkit", "megatron-core", "nvidia-modelopt")
MARK = "HOP "


@contextmanager
def timed(found: dict[str, float], *places: tuple[Any, str]) -> Iterator[None]:
    """Seconds spent in functions, by their name, GPU work included."""
    import torch

    from pipeline.adapters.megatron_cpu import replaced

    def timing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments, **named)
            torch.cuda.synchronize()
            found[name] = found.get(name, 0.0) + time.perf_counter() - begin
            return result

        return run

    with replaced([(owner, name, timing(getattr(owner, name), name)) for owner, name in places]):
        yield


def artifact(path: Path, kind: str) -> Any:
    from pipeline.artifact import Artifact

    manifest: Any = SimpleNamespace(kind=kind, stage="made")
    return Artifact(path, manifest)


def configuration(work: Path, *overrides: str) -> Any:
    from pipeline import compose

    model = ["model=local", "model.name=llama-8b", f"model.path={work / 'hf'}"]
    calibration = [
        f"quantize.calibration.rows={CALIBRATION_ROWS}",
        f"quantize.calibration.max_length={CALIBRATION_TOKENS}",
        "quantize.calibration.batch_size=8",
        "quantize.compare=[]",
    ]
    return compose.from_command_line(["stage=all", *model, *calibration, *overrides])[2]


def make(work: Path) -> dict[str, Any]:
    """Random bfloat16 weights as an HF folder, and a dataset of random rows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipeline.adapters import hf
    from pipeline.chat import Chat
    from pipeline.dataset import Row, write_split

    folder = model_folder(work / "hf", 32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    def tensors() -> Iterator[tuple[str, Any]]:
        for name, shape in shapes.items():
            made = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
            yield name, made.fill_(1.0) if name.endswith("norm.weight") else made.normal_(std=0.02)

    hf.write_weights(folder, tensors(), dtype="bfloat16")
    dataset = work / "dataset"
    dataset.mkdir()
    draw = np.random.default_rng(0)
    for split, count in (("train", CALIBRATION_ROWS), ("validation", 16)):
        ids = draw.integers(0, VOCABULARY, (count, CALIBRATION_TOKENS)).tolist()
        mask = [1] * CALIBRATION_TOKENS
        write_split(dataset, split, [Row([], i, mask, f"made:{n}") for n, i in enumerate(ids)])
    (dataset / "tokenizer").mkdir()
    Chat.load(folder).save(dataset / "tokenizer")
    return {"bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors"))}


def import_hop(work: Path) -> dict[str, Any]:
    from pipeline.adapters import hf, nemo
    from pipeline.stages import import_

    (work / "nemo").mkdir()
    found: dict[str, float] = {}
    with timed(found, (nemo, "import_hf"), (hf, "load_model"), (nemo, "open_checkpoint")):
        outcome = import_.run(configuration(work), {}, work / "nemo")
    return {"functions": found, "converting": found["import_hf"], "metrics": outcome.metrics}


def finetune_hop(work: Path) -> dict[str, Any]:
    """Process start to the first step, from the imported checkpoint."""
    from pipeline.adapters import nemo_training
    from pipeline.adapters.nemo import nemo_session
    from pipeline.batches import TokenRows
    from pipeline.dataset import read_split
    from pipeline.training import Job

    rows = read_split(work / "dataset", "train")
    TokenRows.of((r.input_ids, r.loss_mask) for r in rows).save(work / "rows")
    job = Job(
        section="finetune", method="lora", hf=work / "nemo/hf", weights=work / "nemo",
        train_rows=work / "rows", validation_rows=None, scratch=work / "scratch",
        out=work / "adapter", seed=0, steps=2, max_length=CALIBRATION_TOKENS, global_batch_size=8,
        micro_batch_size=8, learning_rate=1e-4, min_learning_rate=1e-5, warmup_steps=1,
        weight_decay=0.0, clip_grad=1.0, validate_every=100, checkpoint_every=100, rank=16,
        alpha=32,
    )  # fmt: skip
    steps: list[float] = []
    started = psutil.Process().create_time()
    nemo_training.GPU_REPORT_EVERY = 1
    with nemo_session():
        imported = time.time() - started
        nemo_training.train(job, lambda point: steps.append(time.time() - started))
    shutil.copytree(work / "nemo/hf", work / "adapter/hf")
    return {"imported": imported, "start_to_first_step": steps[0], "second_step": steps[1]}


def merge_hop(work: Path) -> dict[str, Any]:
    from pipeline.adapters import hf, nemo
    from pipeline.stages import merge

    inputs = {
        "import": artifact(work / "nemo", "nemo_checkpoint"),
        "finetune": artifact(work / "adapter", "nemo_adapter"),
    }
    (work / "merged").mkdir()
    found: dict[str, float] = {}
    places = [(nemo, n) for n in ("open_checkpoint", "fold_adapter")]
    with timed(found, *places, (hf, "write_weights"), (hf, "load_model"), (hf, "model_of")):
        outcome = merge.run(configuration(work), inputs, work / "merged")
    converting = sum(found[n] for n in ("open_checkpoint", "fold_adapter", "write_weights"))
    return {"functions": found, "converting": converting, "metrics": outcome.metrics}


def quantize_hop(work: Path) -> dict[str, Any]:
    from pipeline.adapters import hf, modelopt
    from pipeline.stages import quantize

    inputs = {
        "merge": artifact(work / "merged", "hf_checkpoint"),
        "prepare": artifact(work / "dataset", "dataset"),
    }
    (work / "quantized").mkdir()
    found: dict[str, float] = {}
    names = ("quantize", "save", "load", "weight_errors", "logits_at")
    with timed(found, *((modelopt, n) for n in names), (hf, "load_model")):
        quantize.run(configuration(work), inputs, work / "quantized")
    return {"functions": found}


def export_hop(work: Path) -> dict[str, Any]:
    from pipeline.adapters import modelopt_export
    from pipeline.stages import export

    inputs = {
        "merge": artifact(work / "merged", "hf_checkpoint"),
        "quantize": artifact(work / "quantized", "quantized"),
        "prepare": artifact(work / "dataset", "dataset"),
    }
    (work / "exported").mkdir()
    found: dict[str, float] = {}
    with timed(found, *((modelopt_export, n) for n in ("write_qnemo", "write_unified_hf"))):
        outcome = export.run(configuration(work), inputs, work / "exported")
    return {"functions": found, "metrics": outcome.metrics}


def recipe_hop(work: Path) -> dict[str, Any]:
    """ModelOpt's recipe for HF models (examples/llm_ptq): load, quantize, export."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    from pipeline.dataset import read_split

    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        work / "merged", dtype=torch.bfloat16, device_map="cuda"
    )
    loaded = time.perf_counter()
    rows = [row.input_ids for row in read_split(work / "dataset", "train")]

    def feed(model: Any) -> None:
        for start in range(0, len(rows), 8):
            model(torch.tensor(rows[start : start + 8], device="cuda"))

    with torch.no_grad():
        model = mtq.quantize(model, mtq.FP8_DEFAULT_CFG, feed)
    torch.cuda.synchronize()
    calibrated = time.perf_counter()
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=work / "recipe")
    return {
        "functions": {
            "load": loaded - begin,
            "quantize": calibrated - loaded,
            "export": time.perf_counter() - calibrated,
        }
    }


HOPS: dict[str, tuple[Callable[[Path], dict[str, Any]], tuple[str, ...]]] = {
    # name → what runs it, and what nothing after it reads
    "make": (make, ()),
    "import": (import_hop, ()),
    "finetune": (finetune_hop, ()),
    "merge": (merge_hop, ("nemo", "adapter", "copy")),
    "quantize": (quantize_hop, ()),
    "export": (export_hop, ("quantized", "exported")),
    "recipe": (recipe_hop, ("recipe",)),
}


def anonymous_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children that no file backs."""
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
    parser.add_argument("--commit", default="unknown", help="of the tree, where git is not")
    parser.add_argument("--hop", choices=HOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work
    if arguments.hop:
        print(MARK + json.dumps(HOPS[arguments.hop][0](work)))
        return
    import torch

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
            "command": "python bench/gpu_hops.py",
            "commit": arguments.commit,
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": torch.cuda.get_device_name(),
            "versions": {n: metadata.version(n) for n in PACKAGES},
            "hops": found,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
