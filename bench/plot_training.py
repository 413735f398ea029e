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
    ("LoRA bf16: HF PEFT, compiled, two rows", "gpu_training_peer", "lora-b2", PEER),
    ("LoRA bf16", "gpu_training_lora", "lora-bf16-b4", OURS),
    ("LoRA bf16, packed conversations", "gpu_training_lora", "lora-bf16-pack16384", OURS),
    ("LoRA FP8", "gpu_training_lora", "lora-fp8-b4", OURS),
    ("LoRA FP8, packed conversations", "gpu_training_lora", "lora-fp8-pack16384", OURS),
    ("full, 22 layers: HF, compiled, two rows", "gpu_training_sft_l22_peer", "mixed-b2-l22", PEER),
    ("full, 22 layers, two rows", "gpu_training_sft_l22", "sft-bf16-b2-l22", OURS),
    ("full, 26 layers: HF, compiled, one row", "gpu_training_sft_l26_peer", "mixed-b1-l26", PEER),
    ("full, 26 layers, two rows", "gpu_training_sft_l26", "sft-bf16-b2-l26", OURS),
)
GPUS = {1: "lora-bf16-b4", 2: "lora-bf16-b4-g2", 4: "lora-bf16-b4-g4"}  # gpu_training_parallel
# By tokens per row, with 16,384 tokens per micro-batch (8,192 for rows of 4,096, so that all ran on
# one host): gpu_training_rows.
LENGTHS = {
    1024: "lora-bf16-b16-s1024",
    2048: "lora-bf16-b8-s2048",
    4096: "lora-bf16-b2",
    8192: "lora-bf16-b2-s8192",
    16384: "lora-bf16-b1-s16384",
}
# By rows of 4,096 tokens per micro-batch: the file, and the rest of the case's name.
ROWS = {
    1: ("gpu_training_one_row", "b1"),
    2: ("gpu_training_lora", "b2"),
    4: ("gpu_training_lora", "b4"),
}
ROW = 4096


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
    axis.set_title(
        "LoRA bf16, tokens/s by number of H200s (dotted: ideal scaling)", loc="left", fontsize=10
    )
    axis.set_xticks(list(GPUS))
    save(figure, "training-gpus")


def draw_rows() -> None:
    figure, (lengths, speed, memory) = plt.subplots(1, 3, figsize=(13, 2.9))
    found = {n: case("gpu_training_rows", name) for n, name in LENGTHS.items()}
    line(lengths, {n: c["tokens_per_second_a_gpu"] for n, c in found.items()}, OURS)
    lengths.set_title("LoRA bf16, tokens/s by tokens per row", loc="left", fontsize=10)
    lengths.set_xscale("log", base=2)
    lengths.set_xticks(list(LENGTHS), [f"{n:,}" for n in LENGTHS])
    speeds, memories = by_rows("tokens_per_second_a_gpu"), by_rows("peak_memory_gib")
    for precision, other, colour in (("bf16", "fp8", OURS), ("fp8", "bf16", FP8)):
        line(speed, speeds[precision], colour, beside=speeds[other])
        sizes = [{n * ROW: y for n, y in memories[p].items()} for p in (precision, other)]
        line(memory, sizes[0], colour, beside=sizes[1])
        memory.plot([], [], color=colour, label=precision.replace("fp", "FP"))
    speed.set_title("LoRA, tokens/s by rows per micro-batch", loc="left", fontsize=10)
    speed.set_xticks(list(ROWS))
    memory.axhline(CARD, color=PEER, linestyle=":")
    memory.set_ylim(0, 1.05 * CARD)
    memory.legend(frameon=False, fontsize=9, loc="lower right")
    memory.set_title("LoRA, GiB by tokens per micro-batch", loc="left", fontsize=10)
    memory.set_xticks([n * ROW for n in ROWS], [f"{n * ROW:,}" for n in ROWS])
    save(figure, "training-rows")


def by_rows(key: str) -> dict[str, dict[int, float]]:
    """Results of LoRA by rows per micro-batch, for each precision."""
    return {
        precision: {
            n: case(file, f"lora-{precision}-{name}")[key] for n, (file, name) in ROWS.items()
        }
        for precision in ("bf16", "fp8")
    }


def line(
    axis: Any, points: dict[int, float], colour: str, beside: dict[int, float] | None = None
) -> None:
    """Points with labels: above the point if it is higher than another line's, else below."""
    axis.plot(list(points), list(points.values()), color=colour, marker="o")
    for x, y in points.items():
        axis.annotate(
            f"{y:,.0f}",
            (x, y),
            (-4, 7) if beside and y > beside[x] else (4, -13),
            textcoords="offset points",
            fontsize=9,
            color=colour,
        )
    axis.margins(x=0.15)
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.1 * max(points.values())))
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(ROOT / f"docs/images/{name}.svg", metadata={"Date": None})


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "training"  # deterministic: the same results give the same file
    draw_cases()
    draw_gpus()
    draw_rows()


if __name__ == "__main__":
    main()
