"""How fast GPUs of one host sum over NCCL, and a host copies to one.

    torchrun --nproc-per-node 2 bench/gpu_links.py

Sizes: a small message, the gradients of a LoRA of rank 16 on 8 B in bfloat16, and 1 GiB. Prints one
line of JSON, medians of six after two: milliseconds, and GB/s of the summed bytes.
"""

import json
import os
import statistics
import time

import torch
import torch.distributed as dist

MIB = (1, 84, 1024)


def main() -> None:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    found: dict[str, object] = {"hardware": torch.cuda.get_device_name()}
    for size in MIB:
        data = torch.ones(size << 18, device="cuda")  # float32
        seconds = []
        for _ in range(8):
            torch.cuda.synchronize()
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(data)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        median = statistics.median(seconds[2:])
        found[f"{size} MiB"] = {
            "ms": round(1e3 * median, 2),
            "GB/s": round(size / 1024 / median, 1),
        }
    here = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(here, device="cuda")
    begin = time.perf_counter()
    there.copy_(here)
    torch.cuda.synchronize()
    found["host to device, pinned, GB/s"] = round(1 / (time.perf_counter() - begin), 1)
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
