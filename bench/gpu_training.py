"""Training throughput of the finetune stage on GPUs, in tokens per second, at Llama-3-8B's shape.

    python bench/gpu_training.py CASE … --output bench/results/gpu_training_lora.json

Weights are random and created on the host, the tokenizer is the bundled one, and rows are random
tokens. A case runs the same code as `stage=finetune` (pipeline/training/nemo/trainer.py), measures
its speed over intervals of four steps (ten on several GPUs, as in the stage), and stops after
enough intervals. Cases:

    METHOD-PRECISION-bN         N rows of 4096 tokens per micro-batch, 8 rows per GPU and step
    METHOD-PRECISION-packN      conversations of 600 tokens on average, in packs of N tokens

METHOD: lora, sft, or dpo (pairs of a better and a worse row, with an adapter). Before it may stand
another shape, as in `qwen3_8b.lora-bf16-b2`. Suffixes, in this order: `-sN` for rows of N tokens
(and the same tokens per step), `-lN` for N of the layers, `-selective` or `-full` for recomputing
activations, `-cN` for N GPUs that share each row (context parallelism), and `-gN` for N GPUs with
data parallelism. Each result has what `stage=plan` expects beside it.
"""

import gc
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.origin import origin, parser_of  # noqa: E402
from pipeline.config.defaults import default_config  # noqa: E402
from pipeline.models.architecture import read_shape  # noqa: E402
from pipeline.planner.workload import linear_parameters  # noqa: E402
from pipeline.training.batches import TokenRows  # noqa: E402
from pipeline.training.job import GPU_REPORT_EVERY, Job, Point  # noqa: E402
from pipeline.training.preference import PreferenceRows  # noqa: E402

VOCABULARY, SEQUENCE, GLOBAL_BATCH = 128_256, 4096, 8
REPORT_EVERY, READINGS = 4, 4  # of the speed, after one that warms up
CONVERSATION_BATCH = 64
CASE = re.compile(
    r"(?:(?P<shape>\w+)\.)?(?P<method>lora|sft|dpo)-(?P<precision>bf16|fp8)-(?P<kind>b|pack)(?P<size>\d+)"
    r"(?:-s(?P<length>\d+))?(?:-l(?P<layers>\d+))?(?:-(?P<recompute>selective|full))?"
    r"(?:-c(?P<context>\d+))?(?:-g(?P<gpus>\d+))?$"
)
# config.json of the models' cards, beyond what model_folder writes.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_8b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
    },
    "gemma2_9b": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "vocab_size": 256_000,
        "hidden_size": 3584,
        "intermediate_size": 14_336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
PACKAGES = ("torch", "nemo_toolkit", "megatron-core", "transformer_engine")


class Enough(Exception):
    """Stops a run when its speed has been measured."""


def model_folder(folder: Path, layers: int | None, shape: str | None = None) -> Path:
    """config.json of a shape, by default Llama-3-8B's, and the bundled tokenizer. layers: fewer."""
    folder.mkdir(parents=True)
    for file in (ROOT / "data/base_model").iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "provenance.json":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "vocab_size": VOCABULARY,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        **(SHAPES[shape] if shape else {}),
        **({"num_hidden_layers": layers} if layers else {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def conversation_lengths(count: int, seed: int = 0) -> list[int]:
    """Lengths of conversations in tokens: log-normal with mean 600, from 32 to 4096."""
    draw = np.random.default_rng(seed).lognormal(np.log(600) - 0.32, 0.8, count)
    return [int(n) for n in np.clip(draw, 32, SEQUENCE)]


def make_rows(lengths: list[int], folder: Path) -> Path:
    draw = np.random.default_rng(1)
    rows = [(draw.integers(0, VOCABULARY, n, dtype=np.int32), np.ones(n, np.int8)) for n in lengths]
    starts = np.cumsum([0, *lengths])
    ids, mask = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    TokenRows(ids, mask, starts).save(folder)
    return folder


def make_pairs(lengths: list[int], folder: Path) -> Path:
    """Pairs of rows that share their first half."""
    draw = np.random.default_rng(1)
    pairs = []
    for length in lengths:
        half = length // 2
        question = draw.integers(0, VOCABULARY, half)
        answers = [draw.integers(0, VOCABULARY, length - half) for _ in range(2)]
        mask = [0] * half + [1] * (length - half)
        pairs.append([(np.concatenate([question, answer]).tolist(), mask) for answer in answers])
    PreferenceRows.of_pairs(pairs).save(folder)
    return folder


def job_of(case: str, folder: Path, reports: int) -> Job:
    match = CASE.match(case)
    assert match
    given = match.groupdict()
    packed, pairs = given["kind"] == "pack", given["method"] == "dpo"
    context, data = int(given["context"] or 1), int(given["gpus"] or 1)
    processes = context * data
    steps = (GPU_REPORT_EVERY if processes > 1 else REPORT_EVERY) * reports + 1
    sequence = int(given["length"] or SEQUENCE)
    batch = CONVERSATION_BATCH if packed else GLOBAL_BATCH * SEQUENCE // sequence
    batch = max(batch * data // (2 if pairs else 1), data)
    lengths = conversation_lengths(batch * steps) if packed else [sequence + 1] * batch * steps
    changes = {
        "finetune.method": "lora" if pairs else given["method"],
        "finetune.objective": "dpo" if pairs else "sft",
        "finetune.max_steps": steps + 1000,
        "finetune.global_batch_size": batch,
        "finetune.micro_batch_size": 1 if packed else int(given["size"]),
        "finetune.warmup_steps": 1,
        "finetune.validate_every": 10_000,
        "finetune.checkpoint_every": 10_000,
        "finetune.pack_length": int(given["size"]) if packed else None,
        "finetune.precision": given["precision"],
        "finetune.recompute": given["recompute"] or "none",
        "finetune.parallel.processes": processes,
        "finetune.parallel.context": context,
    }
    return Job(
        settings=default_config({"demo": None, **changes}).finetune,
        hf=model_folder(folder / "hf", int(given["layers"] or 0), given["shape"]),
        weights=None,
        train_rows=(make_pairs if pairs else make_rows)(lengths, folder / "rows"),
        validation_rows=None,
        scratch=folder / "scratch",
        out=folder / "out",
        seed=0,
        max_length=sequence,
    )


def run(case: str, folder: Path, *, readings: int, profile: bool) -> dict[str, Any]:
    import torch

    from pipeline.core.monkeypatch import Replacement, replaced
    from pipeline.training import workers as launch
    from pipeline.training.nemo.session import nemo_session

    points: list[Point] = []
    reports = readings + 1
    activities = [torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=activities) if profile else None

    def report(point: Point) -> None:
        points.append(point)
        print(f"{time.monotonic() - begin:6.1f} s: step {point.step}", file=sys.stderr, flush=True)
        if profiler and len(points) == 2 * REPORT_EVERY:
            profiler.start()
        if profiler and len(points) == 3 * REPORT_EVERY:
            torch.cuda.synchronize()
            profiler.stop()
            raise Enough
        if len(points) == every * reports:
            raise Enough

    if (kept := torch.cuda.memory_allocated() / 2**30) > 1:
        raise RuntimeError(f"{kept:.1f} GiB of the previous case are still in use")
    torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    job = job_of(case, folder, reports)
    every = GPU_REPORT_EVERY if job.parallel.processes > 1 else REPORT_EVERY
    try:
        if job.parallel.processes > 1:
            launch.train_in_processes(job, report)
        else:
            with nemo_session():
                from pipeline.training.nemo import callbacks as nemo_recorder
                from pipeline.training.nemo import trainer as nemo_training

                with replaced([Replacement(nemo_recorder, "GPU_REPORT_EVERY", every)]):
                    nemo_training.train(job, report)
    except Enough:
        pass
    speeds = [p.tokens_per_second / job.parallel.processes for p in points[every::every]]
    median = statistics.median(speeds)
    config = json.loads((job.hf / "config.json").read_text())
    weights = linear_parameters(read_shape(job.hf))  # of matrix products
    weights += config["vocab_size"] * config["hidden_size"]
    passes = 4 if job.settings.method == "lora" else 6
    peak = torch.cuda.max_memory_allocated() / 2**30
    found = {
        "tokens_per_second_a_gpu": round(median),
        "readings": [round(s) for s in speeds],
        **({"peak_memory_gib": round(peak, 1)} if job.parallel.processes == 1 else {}),
        "plan": planned(job),
        "matrix_tflops": round(passes * weights * median / 1e12),
        "seconds_in_all": round(time.monotonic() - begin, 1),
        "losses": [round(p.loss, 4) for p in points],
    }
    if profiler:
        events = sorted(profiler.key_averages(), key=lambda e: -e.device_time_total)
        total = sum(e.self_device_time_total for e in events)
        found["profile_ms_a_step"] = {
            e.key[:90]: [
                round(e.self_device_time_total / 1e3 / REPORT_EVERY, 2),
                e.count // REPORT_EVERY,
            ]
            for e in events[:45]
        }
        found["profile_total_ms_a_step"] = round(total / 1e3 / REPORT_EVERY, 1)
    return found


def planned(job: Job) -> dict[str, Any]:
    """What stage=plan expects of the job: tokens per second and GiB of a GPU."""
    from pipeline.config.finetune import OBJECTIVES
    from pipeline.core.hardware import inspect_machine
    from pipeline.planner.accelerators import of_machine
    from pipeline.planner.memory import peak
    from pipeline.planner.rows import Rows
    from pipeline.planner.speed import step
    from pipeline.planner.workload import Workload

    sides = OBJECTIVES[job.settings.objective].sides
    mean = 600.0 if job.settings.pack_length else float(sides * job.max_length)
    rows = Rows(None, job.max_length, mean, 0, known=True)
    work = Workload(read_shape(job.hf), job.settings, rows)
    machine = inspect_machine()
    expected = step(work, of_machine(machine), node=len(machine.gpus))
    gpus = job.parallel.processes
    return {
        **(
            {"tokens_per_second_a_gpu": round(expected.tokens / expected.seconds / gpus)}
            if expected
            else {}
        ),
        "peak_memory_gib": round(peak(work).tensors / 2**30, 1),
    }


def forget_placeholders() -> None:
    """Bytes of the placeholders for accumulated gradients: one per shape, 1.4 GiB at this size."""
    if base := sys.modules.get("transformer_engine.pytorch.module.base"):
        base._dummy_wgrads.clear()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--readings", type=int, default=READINGS, help="of the speed")
    parser.add_argument(
        "--profile", action="store_true", help="profile the kernels of four steps instead"
    )
    arguments = parser.parse_args()
    if wrong := [c for c in arguments.cases if not CASE.match(c)]:
        parser.error(f"not a case: {', '.join(wrong)}")
    if arguments.profile and (
        arguments.readings < 2 or any(re.search(r"-[cg]\d+$", c) for c in arguments.cases)
    ):
        parser.error("--profile needs one GPU, and at least two readings")
    import torch

    words = ["python bench/gpu_training.py", *arguments.cases, f"--readings {arguments.readings}"]
    command = " ".join([*words, *["--profile"] * arguments.profile])
    results: dict[str, Any] = {}
    for case in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[case] = run(
                    case, Path(folder), readings=arguments.readings, profile=arguments.profile
                )
            except Exception as error:  # the other cases still run
                results[case] = {"error": f"{type(error).__name__}: {error}"[:2000]}
        forget_placeholders()
        gc.collect()
        torch.cuda.empty_cache()
        print(case, json.dumps(results[case]), flush=True)
        document = {
            **origin(command, PACKAGES, arguments.commit),
            "sequence": SEQUENCE,
            "global_batch": GLOBAL_BATCH,
            "cases": results,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
