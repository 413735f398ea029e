"""Draws docs/images/training*.svg from the results of gpu_training.py and gpu_training_peer.py.

python bench/plot_training.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
OURS, PEER = "#4c8c2b", "#9a9a9a"
# label, file, case, colour
BARS = (
    ("LoRA bf16: HF PEFT, compiled", "gpu_training_peer", "lora-b1", PEER),
    ("LoRA bf16", "gpu_training_fast", "lora-bf16-b4", OURS),
    ("LoRA bf16, packed conversations", "gpu_training_fast", "lora-bf16-pack16384", OURS),
    ("LoRA FP8", "gpu_training_fast", "lora-fp8-b4", OURS),
    ("LoRA FP8, packed conversations", "gpu_training", "lora-fp8-pack16384", OURS),
    ("full, 22 layers: HF, float32 weights", "gpu_training_sft_b2_peer", "mixed-b1-l22", PEER),
    ("full, 22 layers: HF, all in bf16", "gpu_training_peer", "sft-b1-l22", PEER),
    ("full, 22 layers: float32 sums and state", "gpu_training_sft_b2", "sft-bf16-b2-l22", OURS),
)
GPUS = {1: "lora-bf16-b4", 2: "lora-bf16-b4-g2", 4: "lora-bf16-b4-g4"}  # gpu_training_parallel


def case(file: str, name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{file}.json").read_text())["cases"][name]


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "training"  # the same picture from the same figures
    found = [(label, case(file, name), colour) for label, file, name, colour in BARS]
    labels, colours = [b[0] for b in found], [b[2] for b in found]
    figure, (speed, memory) = plt.subplots(
        1, 2, figsize=(11, 3.6), sharey=True, width_ratios=(2, 1)
    )
    for axis, key, title in (
        (speed, "tokens_per_second_a_gpu", "tokens/s on one H200"),
        (memory, "peak_memory_gib", "GiB of 139"),
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

    figure, axis = plt.subplots(figsize=(5, 2.6))
    together = [
        n * case("gpu_training_parallel", name)["tokens_per_second_a_gpu"]
        for n, name in GPUS.items()
    ]
    axis.plot(list(GPUS), [n * together[0] for n in GPUS], color=PEER, linestyle=":")
    axis.plot(list(GPUS), together, color=OURS, marker="o")
    for n, speed_of_all in zip(GPUS, together, strict=True):
        axis.annotate(
            f"{speed_of_all:,}", (n, speed_of_all), (4, -12), textcoords="offset points", fontsize=9
        )
    axis.set_title("LoRA bf16, tokens/s on so many H200s (dotted: of one)", loc="left", fontsize=10)
    axis.set_xticks(list(GPUS))
    axis.set_ylim(0)
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, "training-gpus")


def save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(ROOT / f"docs/images/{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
