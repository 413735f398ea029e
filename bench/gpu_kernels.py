"""Speed of the kernels in training/nemo/patches and of what they replace, at Llama-3-8B's shape.

    python bench/gpu_kernels.py --output bench/results/gpu_kernels.json

A micro-batch has 16,384 tokens. Medians of 20 runs after a warm-up, on one GPU. `GB_s` counts every
byte that must be read or written once.
"""

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.origin import origin, parser_of
from pipeline.training.nemo.session import nemo_session

SEQUENCE, BATCH, GROUPS, QUERIES, SIZE = 4096, 4, 8, 4, 128
TOKENS, HIDDEN, INNER, RANK = SEQUENCE * BATCH, 4096, 14336, 16
PACKAGES = ("torch", "triton", "transformer_engine", "megatron-core")
WARM_UP, RUNS = 5, 20


def milliseconds(run: Callable[[], Any]) -> float:
    times = []
    for number in range(WARM_UP + RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= WARM_UP:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def swiglu() -> tuple[int, dict[str, Callable[[], Any]]]:
    from megatron.core.fusions.fused_bias_swiglu import swiglu_back as theirs

    from pipeline.training.nemo.patches.triton_kernels import swiglu_back

    y, grad = random(TOKENS, 2 * INNER), random(TOKENS, INNER)
    moved = 5 * grad.numel()
    return moved, {"ours": lambda: swiglu_back(grad, y), "megatron": lambda: theirs(grad, y)}


def rotation() -> tuple[int, dict[str, Callable[[], Any]]]:
    """Forward and back."""
    from transformer_engine.pytorch.attention.rope import apply_fused_qkv_rotary_pos_emb

    from pipeline.training.nemo.patches.triton_kernels import rotated

    sizes = [QUERIES * SIZE, SIZE, SIZE]
    mixed = random(SEQUENCE, BATCH, GROUPS, sum(sizes)).requires_grad_()
    freqs = torch.rand(SEQUENCE, 1, 1, SIZE, device="cuda")

    def run(function: Any) -> Callable[[], Any]:
        parts = function(mixed, freqs, freqs, sizes)
        grads = [torch.randn_like(p) for p in parts]
        return lambda: torch.autograd.grad(function(mixed, freqs, freqs, sizes), mixed, grads)

    return 4 * mixed.numel(), {
        "ours": run(rotated),
        "transformer_engine": run(apply_fused_qkv_rotary_pos_emb),
    }


def low_rank(width: int) -> tuple[int, dict[str, Callable[[], Any]]]:
    from pipeline.training.nemo.patches.triton_kernels import add_low_rank

    total, low, b = random(TOKENS, width), random(TOKENS, RANK), random(width, RANK)
    return 2 * total.numel(), {
        "ours": lambda: add_low_rank(total, low, b, 2.0),
        "cublas": lambda: total.addmm_(low, b.t(), alpha=2.0),
    }


def adam() -> tuple[int, dict[str, Callable[[], Any]]]:
    """Gradient clipping, AdamW and the bfloat16 weights of one layer's two SwiGLU inputs."""
    import transformer_engine_torch as engine

    from pipeline.training.nemo.patches.adam_step import AdamStep
    from pipeline.training.nemo.patches.master_weights import split
    from pipeline.training.nemo.patches.triton_kernels import adam

    grad, weight, mean, square = (
        torch.rand(2 * INNER * HIDDEN, device="cuda") * 1e-2 for _ in range(4)
    )
    upper, lower = split(weight)
    step = AdamStep(1e-5, 0.9, 0.95, 1e-8, 0.0, 10, scale=1.0)
    overflow, chunk = torch.zeros(1, dtype=torch.int, device="cuda"), 2048 * 32

    def theirs() -> None:
        engine.multi_tensor_scale(chunk, overflow, [[grad], [grad]], 1.0)
        lists = [[grad], [weight], [mean], [square]]
        engine.multi_tensor_adam(chunk, overflow, lists, 1e-5, 0.9, 0.95, 1e-8, 10, 1, 1, 0.0)
        upper.copy_(weight)

    # In units of two bytes: 16 bytes are read and 12 written per weight.
    return 14 * len(grad), {
        "ours": lambda: adam(grad, upper, mean, square, lower, step),
        "transformer_engine": theirs,
    }


CASES: dict[str, Callable[[], tuple[int, dict[str, Callable[[], Any]]]]] = {
    "swiglu, gradient": swiglu,
    "rotation of queries and keys, and its gradient": rotation,
    "clipping and AdamW": adam,
} | {
    f"low-rank product added to {n} columns": partial(low_rank, n)
    for n in (HIDDEN, (QUERIES + 2) * GROUPS * SIZE, INNER, 2 * INNER)
}


def main() -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args()
    found = {}
    with nemo_session():
        for name, make in CASES.items():
            moved, contestants = make()
            times = {who: milliseconds(run) for who, run in contestants.items()}
            found[name] = {
                who: {"ms": round(ms, 3), "GB_s": round(2 * moved / ms / 1e6)}
                for who, ms in times.items()
            }
            print(name, json.dumps(found[name]), flush=True)
            torch.cuda.empty_cache()
    document = {
        **origin("python bench/gpu_kernels.py", PACKAGES, arguments.commit),
        "tokens": TOKENS,
        "cases": found,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
