"""A rank of data parallel that writes an optimizer's state twice: as Megatron does, and streamed.

    python tests/integration/optimizer_state_rank.py RANK RANKS FOLDER

The weights' parts lie with the ranks as Megatron's distributed optimizer has them. Leaves what is
in the two checkpoints in megatron.pt and streamed.pt, and tells how many weights this rank kept.
"""

import json
import sys
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch

from pipeline.training.nemo.session import nemo_session

SHAPES = {"wide": (8, 6), "norm": (7,), "gate": (10, 4), "last": (5, 3)}
PARTS = ("param", "exp_avg", "exp_avg_sq")


def whole_state() -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: {part: torch.randn(shape, generator=draw) for part in PARTS}
        for name, shape in SHAPES.items()
    }


def optimizer_of(weights: dict[str, torch.nn.Parameter], rank: int, ranks: int) -> Any:
    """What DistributedOptimizer's methods read of it: all weights in a bucket, in equal parts."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer, Range

    total = sum(w.numel() for w in weights.values())
    padded = -(-total // ranks) * ranks
    mine = range(rank * padded // ranks, (rank + 1) * padded // ranks)
    index, here, state = {}, {}, {}
    start = 0
    for name, weight in weights.items():
        index[weight] = (start, start + weight.numel(), 0)
        first, end = max(start, mine.start), min(start + weight.numel(), mine.stop)
        if first < end:
            here[weight] = {
                "param": Range(first - start, end - start),
                "gbuf_local": Range(first - mine.start, end - mine.start),
            }
            parts = whole_state()[name].items()
            state[weight] = {p: t.flatten()[first - start : end - start] for p, t in parts}
        start += weight.numel()
    bucket = SimpleNamespace(grad_data=torch.empty(padded), numel_unpadded=total)
    buffer = SimpleNamespace(numel_unpadded=total, buckets=[bucket], param_index_map=index)
    group = torch.distributed.group.WORLD
    optimizer = SimpleNamespace(
        data_parallel_group=group,
        gbuf_ranges=[{"bfloat16": [{"param_map": here}]}],
        buffers=[buffer],
        _get_main_param_and_optimizer_states=lambda weight: dict(state[weight]),
    )
    gather = DistributedOptimizer.get_parameter_state_dp_zero
    optimizer.get_parameter_state_dp_zero = MethodType(gather, optimizer)
    return optimizer


def main() -> None:
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    with nemo_session():
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing import ShardedTensor
        from megatron.core.dist_checkpointing.strategies.fully_parallel import (
            FullyParallelSaveStrategyWrapper,
        )
        from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
        from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
        from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

        from pipeline.training.nemo.patches.optimizer_checkpoint import _streamed

        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
        )
        weights = {name: torch.nn.Parameter(torch.zeros(s)) for name, s in SHAPES.items()}
        model: dict[str, Any] = {
            name: ShardedTensor.from_rank_offsets(name, weight, replica_id=(0, 0, rank))
            for name, weight in weights.items()
        }
        model["gate"] = apply_swiglu_sharded_factory(model["gate"], ())  # written as two halves
        optimizer = optimizer_of(weights, rank, ranks)
        megatrons = DistributedOptimizer.sharded_param_state_fully_reshardable
        for name, write in (("megatron", megatrons), ("streamed", _streamed(megatrons))):
            state = write(optimizer, model, False, {})
            (folder / name).mkdir(exist_ok=True)
            torch.distributed.barrier()
            dist_checkpointing.save(
                {"optimizer": state},
                str(folder / name),
                FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy("torch_dist", 1)),
            )
            found = dist_checkpointing.load_plain_tensors(str(folder / name))
            if rank == 0:
                torch.save(found, folder / f"{name}.pt")
        print(json.dumps({"kept": len(state)}))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
