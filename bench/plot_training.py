"""Draws docs/images/training.svg from the results of gpu_training.py and gpu_training_peer.py.

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
    ("LoRA bf16", "gpu_training", "lora-bf16-b4", OURS),
    ("LoRA bf16, packed conversations", "gpu_training", "lora-bf16-pack16384", OURS),
    ("LoRA FP8", "gpu_training", "lora-fp8-b4", OURS),
    ("LoRA FP8, packed conversations", "gpu_training", "lora-fp8-pack16384", OURS),
    ("full, 22 layers: HF, float32 weights", "gpu_training_peer_mixed", "mixed-b1-l22", PEER),
    ("full, 22 layers: HF, all in bf16", "gpu_training_peer", "sft-b1-l22", PEER),
    ("full, 22 layers: float32 sums and state", "gpu_training_sft", "sft-bf16-b1-l22", OURS),
)


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
    figure.tight_layout()
    figure.savefig(ROOT / "docs/images/training.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
