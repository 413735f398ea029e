"""Draws docs/images/training*.svg from the results of gpu_training.py and gpu_training_peer.py.

python bench/plot_training.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CARD = 139  # GiB
OURS, FP8, PEER = "#4c8c2b", "#b5651d", "#9a9a9a"
# label, file, case, colour
BARS = (
    ("LoRA bf16: HF PEFT, compiled", "gpu_training_peer", "lora-b1", PEER),
    ("LoRA bf16", "gpu_training_fast", "lora-bf16-b4", OURS),
    ("LoRA bf16, packed conversations", "gpu_training_fast", "lora-bf16-pack16384", OURS),
    ("LoRA FP8", "gpu_training_fp8", "lora-fp8-b4", OURS),
    ("LoRA FP8, packed conversations", "gpu_training", "lora-fp8-pack16384", OURS),
    ("full, 22 layers: HF, float32 weights", "gpu_training_sft_b2_peer", "mixed-b2-l22", PEER),
    ("full, 22 layers: HF, all in bf16", "gpu_training_peer", "sft-b1-l22", PEER),
    ("full, 22 layers: float32 sums and state", "gpu_training_sft_b2", "sft-bf16-b2-l22", OURS),
)
GPUS = {1: "lora-bf16-b4", 2: "lora-bf16-b4-g2", 4: "lora-bf16-b4-g4"}  # gpu_training_parallel
# By the tokens of a row, with 16,384 tokens a micro-batch (rows of 4,096: 8,192, for these ran on
# one host). By the tokens of a micro-batch, its memory: file and case.
LENGTHS = {
    1024: "lora-bf16-b16-s1024",
    2048: "lora-bf16-b8-s2048",
    4096: "lora-bf16-b2",
    8192: "lora-bf16-b2-s8192",
    16384: "lora-bf16-b1-s16384",
}
MEMORY = {
    "bf16": {
        8192: ("gpu_training_rows", "lora-bf16-b1-s8192"),
        16384: ("gpu_training_rows", "lora-bf16-b1-s16384"),
    },
    "FP8": {
        8192: ("gpu_training_fast", "lora-fp8-b2"),
        16384: ("gpu_training_fast", "lora-fp8-b4"),
    },
}


def case(file: str, name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{file}.json").read_text())["cases"][name]


def draw_cases() -> None:
    found = [(label, case(file, name), colour) for label, file, name, colour in BARS]
    labels, colours = [b[0] for b in found], [b[2] for b in found]
    figure, (speed, memory) = plt.subplots(
        1, 2, figsize=(11, 3.6), sharey=True, width_ratios=(2, 1)
    )
    for axis, key, title in (
        (speed, "tokens_per_second_a_gpu", "tokens/s on one H200"),
        (memory, "peak_memory_gib", f"GiB of {CARD}"),
    ):
        bars = axis.barh(labels, [b[1][key] for b in found], color=colours)
        axis.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=9)
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.xaxis.set_visible(False)
        axis.tick_params(left=False)
        axis.margins(x=0.12)
    speed.invert_yaxis()
    save(figure, "training")


def draw_gpus() -> None:
    figure, axis = plt.subplots(figsize=(5, 2.6))
    together = {
        n: n * case("gpu_training_parallel", name)["tokens_per_second_a_gpu"]
        for n, name in GPUS.items()
    }
    axis.plot(list(GPUS), [n * together[1] for n in GPUS], color=PEER, linestyle=":")
    line(axis, together, OURS)
    axis.set_title("LoRA bf16, tokens/s on so many H200s (dotted: of one)", loc="left", fontsize=10)
    axis.set_xticks(list(GPUS))
    save(figure, "training-gpus")


def draw_rows() -> None:
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(11, 2.9))
    line(
        speed,
        {
            n: case("gpu_training_rows", name)["tokens_per_second_a_gpu"]
            for n, name in LENGTHS.items()
        },
        OURS,
    )
    speed.set_title("LoRA bf16, tokens/s on one H200, by tokens of a row", loc="left", fontsize=10)
    for (precision, cases), colour in zip(MEMORY.items(), (OURS, FP8), strict=True):
        line(memory, {n: case(*at)["peak_memory_gib"] for n, at in cases.items()}, colour)
        memory.plot([], [], color=colour, label=precision)
    memory.axhline(CARD, color=PEER, linestyle=":")
    memory.set_ylim(0, 1.05 * CARD)
    memory.legend(frameon=False, fontsize=9, loc="lower right")
    memory.set_title(
        "LoRA, GiB by tokens of a micro-batch (dotted: the card's)", loc="left", fontsize=10
    )
    for axis, at in ((speed, LENGTHS), (memory, MEMORY["bf16"])):
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(at), [f"{n:,}" for n in at])
    save(figure, "training-rows")


def line(axis: Any, points: dict[int, float], colour: str) -> None:
    axis.plot(list(points), list(points.values()), color=colour, marker="o")
    for x, y in points.items():
        axis.annotate(
            f"{y:,.0f}", (x, y), (4, -13), textcoords="offset points", fontsize=9, color=colour
        )
    axis.margins(x=0.15)
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.1 * max(points.values())))
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(ROOT / f"docs/images/{name}.svg", metadata={"Date": None})


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "training"  # the same picture from the same figures
    draw_cases()
    draw_gpus()
    draw_rows()


if __name__ == "__main__":
    main()
