"""A rank without NeMo: joins the others over gloo and sums with them, a step every 50 ms.

Tells each step as a training rank does, with its process id in place of the loss.
"""

import os
import sys
import time

import torch.distributed as dist

from pipeline.training.job import Trained
from pipeline.training.torchrun import emit
from pipeline.training.workers import end_with_agent, share_job


def main() -> None:
    import torch

    end_with_agent()
    job = share_job(sys.argv[1] if len(sys.argv) > 1 else None)
    dist.init_process_group("gloo")
    pids = torch.zeros(dist.get_world_size(), dtype=torch.float64)
    for step in range(1, job.settings.max_steps + 1):
        pids.zero_()
        pids[dist.get_rank()] = os.getpid()
        dist.all_reduce(pids)
        if dist.get_rank() == 0:
            point = {"step": step, "loss": pids[-1].item(), "learning_rate": 0, "grad_norm": 0}
            emit({"point": point | {"tokens_per_second": 0}})
        time.sleep(0.05)
    if dist.get_rank() == 0:
        emit({"trained": Trained([], 1.0, 0.0, dist.get_world_size(), 0).to_json()})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
