"""The steps that gpu_hops.py times: the stages' code on random weights of an 8 B model.

Each takes the work folder, reads the results of earlier steps there, and returns its measurements.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from bench.gpu_training import VOCABULARY, model_folder

CALIBRATION_ROWS, CALIBRATION_TOKENS = 512, 1024


@contextmanager
def timed(found: dict[str, float], *places: tuple[Any, str]) -> Iterator[None]:
    """Seconds spent in functions by their name, including work on the GPU."""
    import torch

    from pipeline.core.monkeypatch import Replacement, replaced

    def timing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments, **named)
            torch.cuda.synchronize()
            found[name] = found.get(name, 0.0) + time.perf_counter() - begin
            return result

        return run

    measured = [
        Replacement(owner, name, timing(getattr(owner, name), name)) for owner, name in places
    ]
    with replaced(measured):
        yield


def artifact(path: Path, kind: str) -> Any:
    from pipeline.core.artifact import Artifact

    manifest: Any = SimpleNamespace(kind=kind, stage="made")
    return Artifact(path, manifest)


def configuration(work: Path, *overrides: str) -> Any:
    from pipeline.orchestration import compose

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

    from pipeline.data.dataset import Row, write_split
    from pipeline.models import hf_model
    from pipeline.models.chat.renderer import Chat

    folder = model_folder(work / "hf", 32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    def tensors() -> Iterator[tuple[str, Any]]:
        for name, shape in shapes.items():
            made = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
            yield name, made.fill_(1.0) if name.endswith("norm.weight") else made.normal_(std=0.02)

    hf_model.write_weights(folder, tensors(), dtype="bfloat16")
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
    from pipeline.models import hf_model
    from pipeline.stages import import_
    from pipeline.training.nemo import models as nemo

    (work / "nemo").mkdir()
    found: dict[str, float] = {}
    with timed(found, (nemo, "import_hf"), (hf_model, "load_model"), (nemo, "open_checkpoint")):
        outcome = import_.run(configuration(work), {}, work / "nemo")
    return {"functions": found, "converting": found["import_hf"], "metrics": outcome.metrics}


def finetune_hop(work: Path) -> dict[str, Any]:
    """Seconds from the start of the process to the first step, from the imported checkpoint."""
    from pipeline.config.defaults import default_config
    from pipeline.data.dataset import read_split
    from pipeline.training.batches import TokenRows
    from pipeline.training.job import Job
    from pipeline.training.nemo.session import nemo_session

    rows = read_split(work / "dataset", "train")
    TokenRows.of((r.input_ids, r.loss_mask) for r in rows).save(work / "rows")
    changes = {
        "finetune.max_steps": 2, "finetune.warmup_steps": 1, "finetune.global_batch_size": 8,
        "finetune.micro_batch_size": 8,
    }  # fmt: skip
    job = Job(
        settings=default_config({"demo": None, **changes}).finetune, hf=work / "nemo/hf",
        weights=work / "nemo", train_rows=work / "rows", validation_rows=None,
        scratch=work / "scratch", out=work / "adapter", seed=0, max_length=CALIBRATION_TOKENS,
    )  # fmt: skip
    steps: list[float] = []
    started = psutil.Process().create_time()
    with nemo_session():
        from pipeline.training.nemo import callbacks as nemo_recorder
        from pipeline.training.nemo import trainer as nemo_training

        nemo_recorder.GPU_REPORT_EVERY = 1
        imported = time.time() - started
        nemo_training.train(job, lambda point: steps.append(time.time() - started))
    shutil.copytree(work / "nemo/hf", work / "adapter/hf")
    return {"imported": imported, "start_to_first_step": steps[0], "second_step": steps[1]}


def merge_hop(work: Path) -> dict[str, Any]:
    from pipeline.models import hf_model
    from pipeline.stages import merge
    from pipeline.training.nemo import lora as nemo_adapters
    from pipeline.training.nemo import models as nemo

    inputs = {
        "import": artifact(work / "nemo", "nemo_checkpoint"),
        "finetune": artifact(work / "adapter", "nemo_adapter"),
    }
    (work / "merged").mkdir()
    found: dict[str, float] = {}
    places = [(nemo, "open_checkpoint"), (nemo_adapters, "fold_adapter")]
    with timed(
        found,
        *places,
        (hf_model, "write_weights"),
        (hf_model, "load_model"),
        (hf_model, "model_of"),
    ):
        outcome = merge.run(configuration(work), inputs, work / "merged")
    converting = sum(found[n] for n in ("open_checkpoint", "fold_adapter", "write_weights"))
    return {"functions": found, "converting": converting, "metrics": outcome.metrics}


def quantize_hop(work: Path) -> dict[str, Any]:
    from pipeline.models import hf_model
    from pipeline.optimization import logit_probes
    from pipeline.optimization import ptq as modelopt
    from pipeline.stages import quantize

    inputs = {
        "merge": artifact(work / "merged", "hf_checkpoint"),
        "prepare": artifact(work / "dataset", "dataset"),
    }
    (work / "quantized").mkdir()
    found: dict[str, float] = {}
    names = ("quantize", "save", "load", "weight_errors")
    places = [
        *((modelopt, n) for n in names),
        (logit_probes, "logits_at"),
        (hf_model, "load_model"),
    ]
    with timed(found, *places):
        quantize.run(configuration(work), inputs, work / "quantized")
    return {"functions": found}


def export_hop(work: Path) -> dict[str, Any]:
    from pipeline.optimization import dequantize
    from pipeline.optimization import export as modelopt_export
    from pipeline.stages import export

    inputs = {
        "merge": artifact(work / "merged", "hf_checkpoint"),
        "quantize": artifact(work / "quantized", "quantized"),
        "prepare": artifact(work / "dataset", "dataset"),
    }
    (work / "exported").mkdir()
    found: dict[str, float] = {}
    writers = [(modelopt_export, n) for n in ("write_qnemo", "write_unified_hf")]
    with timed(found, *writers, (dequantize, "compare")):
        outcome = export.run(configuration(work), inputs, work / "exported")
    return {"functions": found, "metrics": outcome.metrics}


def qnemo_hop(work: Path) -> dict[str, Any]:
    """For two and for four ranks: export, check every rule, compare the weights with the source."""
    from pipeline.models.architecture import read_shape
    from pipeline.models.hf_model import WeightReader
    from pipeline.optimization import export as modelopt_export
    from pipeline.optimization.dequantize import compare
    from pipeline.optimization.exported_reader import QnemoWeights
    from pipeline.optimization.qnemo_layout import check_config, check_qnemo

    source, folder = work / "merged", work / "qnemo"
    shape = read_shape(source)
    found: dict[str, Any] = {}
    for ranks in (2, 4):
        begin = time.perf_counter()
        modelopt_export.write_qnemo(
            work / "quantized/fp8",
            source,
            folder,
            format="fp8",
            tensor_parallel=ranks,
            pipeline_parallel=1,
        )
        written = time.perf_counter()
        broken = [*check_qnemo(folder, "fp8", shape.family), *check_config(folder, shape)]
        with WeightReader(source) as theirs, QnemoWeights(folder, shape) as ours:
            table = compare({"qnemo": ours}, theirs, shape)["qnemo"]
        found[f"tensor_parallel_{ranks}"] = {
            "write_qnemo": written - begin,
            "compare": time.perf_counter() - written,
            "bytes": sum(file.stat().st_size for file in folder.glob("rank*.safetensors")),
            "broken_rules": broken,
            "smallest_cosine": min(figures["cosine"] for figures in table.values()),
            "largest_error": max(figures["error"] for figures in table.values()),
        }
        shutil.rmtree(folder)
    return found


def recipe_hop(work: Path) -> dict[str, Any]:
    """ModelOpt's recipe for HF models (examples/llm_ptq): load, quantize, export."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    from pipeline.data.dataset import read_split

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
    # name → the function, and the folders that later steps do not read
    "make": (make, ()),
    "import": (import_hop, ()),
    "finetune": (finetune_hop, ()),
    "merge": (merge_hop, ("nemo", "adapter", "hf")),
    "quantize": (quantize_hop, ()),
    "export": (export_hop, ("exported",)),
    "qnemo": (qnemo_hop, ("quantized",)),
    "recipe": (recipe_hop, ("recipe",)),
}
