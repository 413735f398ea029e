"""Speed of all-reduce over NCCL between the GPUs of one host, and of copies from host to GPU.

    torchrun --nproc-per-node 2 bench/gpu_links.py --output bench/results/gpu_links.json

Sizes: a small message, the gradients of a rank-16 LoRA of an 8 B model in bfloat16, and 1 GiB.
Medians of six runs after two warm-up runs: milliseconds, and GiB/s of the reduced bytes. With
NCCL_P2P_DISABLE=1, traffic goes through the host.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.origin import origin, parser_of

MIB = (1, 84, 1024)


def summing(mib: int) -> dict[str, float]:
    data = torch.ones(mib << 18, device="cuda")  # float32
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(data)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[2:])
    return {"ms": round(1e3 * median, 2), "GiB/s": round(mib / 1024 / median, 1)}


def copying() -> float:
    """GiB/s of copies from pinned host memory."""
    here = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(here, device="cuda")
    begin = time.perf_counter()
    there.copy_(here)
    torch.cuda.synchronize()
    return round(1 / (time.perf_counter() - begin), 1)


def main() -> None:
    parser = parser_of(__doc__)
    given = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    sums = {f"{mib} MiB": summing(mib) for mib in MIB}
    off = "NCCL_P2P_DISABLE=1 " if os.environ.get("NCCL_P2P_DISABLE") == "1" else ""
    command = f"{off}torchrun --nproc-per-node {dist.get_world_size()} bench/gpu_links.py"
    document: dict[str, Any] = {
        **origin(command, ("torch",), given.commit),
        "all_reduce": sums,
        "host to device, pinned, GiB/s": copying(),
    }
    if dist.get_rank() == 0:
        given.output.write_text(json.dumps(document, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
