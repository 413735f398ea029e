"""What 70 B and 405 B models would need: estimates of the planner, not measurements.

    python bench/scaling_on_paper.py --output bench/results/scaling_on_paper.json

Prints the table of docs/scaling.md, which states the assumptions. Each line has the layout that the
planner finds fastest among those that fit. Needs no GPU, and takes a second.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.llama_shapes import write  # noqa: E402
from pipeline.config.defaults import default_config  # noqa: E402
from pipeline.core.hardware import GIB  # noqa: E402
from pipeline.models.architecture import read_shape  # noqa: E402
from pipeline.planner import speed  # noqa: E402
from pipeline.planner.accelerators import KNOWN, LINK_SHARE, NETWORK  # noqa: E402
from pipeline.planner.layouts import quickest  # noqa: E402
from pipeline.planner.memory import peak  # noqa: E402
from pipeline.planner.workload import Rows, Workload  # noqa: E402

ROW, NODE, RANK, CORPUS = 4096, 8, 16, 100e6  # tokens, GPUs a machine, LoRA's rank, tokens
# Model, method, precision, GPU, how many, rows of ROW tokens a step.
LINES = (
    ("8b", "lora", "bf16", "h200", 1, 64),  # measured; the others are derived from it
    ("70b", "lora", "bf16", "h200", 8, 64),
    ("70b", "lora", "fp8", "h200", 8, 64),
    ("70b", "lora", "bf16", "h100", 8, 64),
    ("70b", "sft", "bf16", "h200", 64, 256),
    ("405b", "lora", "bf16", "h200", 64, 256),
    ("405b", "lora", "fp8", "h200", 64, 256),
    ("405b", "lora", "bf16", "h100", 128, 256),
)


def work_out(
    size: str, method: str, precision: str, gpu: str, gpus: int, rows: int
) -> dict[str, Any]:
    """One line of the table: layout, memory, time and network traffic."""
    with tempfile.TemporaryDirectory() as folder:
        shape = read_shape(write(Path(folder), size))
    lengths = Rows(None, ROW, ROW, 0, known=False)
    settings = default_config({
        "demo": None, "finetune.method": method, "finetune.adapter.rank": RANK,
        "finetune.global_batch_size": rows, "finetune.micro_batch_size": 1,
        "finetune.pack_length": ROW, "finetune.precision": precision,
        "finetune.parallel.processes": gpus,
    }).finetune  # fmt: skip
    begin = Workload(shape, settings, lengths)
    on = KNOWN[gpu]
    # Context parallelism excludes packing, so it is used only if nothing else fits.
    found = quickest(begin, on, node=NODE) or quickest(begin.but(pack_length=None), on, node=NODE)
    assert found is not None, f"{size} {method} fits no layout of {gpus} {gpu}"
    work = found[0]
    step = speed.step(work, on, node=NODE)
    assert step is not None
    memory = peak(work)
    rate = step.tokens / step.seconds
    sent = speed.volumes(work)
    return {
        "model": size,
        "method": method,
        "precision": precision,
        "gpu": on.name,
        "gpus": gpus,
        "layout": {
            **work.parallel.model_dump(exclude={"processes"}),
            "data": work.data,
        },
        "memory_gib": {n: round(size / GIB, 2) for n, size in asdict(memory).items()},
        "memory_total_gib": round(memory.total / GIB, 1),
        "microseconds_a_token": round(1e6 / rate, 2),
        "tokens_per_second_a_gpu": round(rate / gpus),
        "share_of_step": {
            n: round(getattr(step, n) / step.seconds, 3)
            for n in ("computing", "tensor", "context", "pipeline", "data")
        },
        "gigabytes_sent_a_gpu_and_step": {n: round(b / 1e9, 2) for n, b in asdict(sent).items()},
        "hours_for_100_million_tokens": round(CORPUS / rate / 3600, 2),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The lines in Markdown."""
    rows = [
        "| model, method | hardware | tensor × pipeline × context × data | GiB a GPU "
        "| tokens/s a GPU | µs a token, all GPUs | of a step computing | sent a GPU and step "
        "| 100 M tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        method = {"lora": "LoRA", "sft": "every weight"}[line["method"]]
        sizes = " × ".join(str(size) for size in line["layout"].values())
        sent = sum(line["gigabytes_sent_a_gpu_and_step"].values())
        rows.append(
            f"| {line['model'].upper()}, {method}, {line['precision']} "
            f"| {line['gpus']} × {line['gpu'].removeprefix('NVIDIA ')} | {sizes} "
            f"| {line['memory_total_gib']:.0f} | {line['tokens_per_second_a_gpu']:,} "
            f"| {line['microseconds_a_token']:.1f} | {line['share_of_step']['computing']:.0%} "
            f"| {sent:,.1f} GB | {line['hours_for_100_million_tokens']:.1f} h |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = [work_out(*line) for line in LINES]
    document = {
        "command": "python bench/scaling_on_paper.py",
        "measured": False,
        "assumptions": {
            "row_tokens": ROW,
            "gpus_a_machine": NODE,
            "adapter_rank": RANK,
            "network_bytes_per_second_a_gpu": NETWORK,
            "share_reached_of_links": LINK_SHARE,
            "share_reached_of_bf16_rate": speed.BF16_SHARE,
            "share_reached_of_fp8_rate": speed.FP8_SHARE,
            "overlap_of_sending_and_computing": 0,
        },
        "lines": lines,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(lines), end="")


if __name__ == "__main__":
    main()
