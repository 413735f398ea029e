"""The optimizer's state in a checkpoint, weight by weight.

For a checkpoint that another layout can go on from (`fully_reshardable`) Megatron-Core 0.15 gathers
the state of all weights at once: 8 bytes a weight of the GPU beside the model, its gradients and
the state itself, and 24 of the host on every rank. A full fine-tune that fits while it trains would
run out of memory as it saves. Here one weight's state is gathered at a time, and each rank keeps
its share of them until they are written. What is written is the same.

Going on from one, Transformer Engine 2.9 copies the state twice, so that the GPU holds 26 bytes a
weight where training takes 16; here it is taken as it is.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from pipeline.core.monkeypatch import Patch

PARTS = ("param", "exp_avg", "exp_avg_sq")


def streamed_state() -> list[Patch]:
    """What to replace in Megatron-Core 0.15 and Transformer Engine 2.9 while a model is trained."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from transformer_engine.pytorch.optimizers import FusedAdam

    name = "sharded_param_state_fully_reshardable"
    return [
        (DistributedOptimizer, name, _streamed(getattr(DistributedOptimizer, name))),
        (FusedAdam, "load_state_dict", adopt),
    ]


def adopt(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Make a state the optimizer's without a copy. Its tensors are of the optimizer's types already
    and on its device, as Megatron-Core makes them before a checkpoint is read into them."""
    torch.optim.Optimizer.load_state_dict(optimizer, {**state_dict, "state": {}})
    numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    weights = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for number, weight in zip(numbers, weights, strict=True):
        if number in state_dict["state"]:
            optimizer.state[weight] = dict(state_dict["state"][number])


def _streamed(original: Any) -> Any:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

    def state(
        self: Any, model_sharded_state_dict: Any, is_loading: bool = False, metadata: Any = None
    ) -> Any:
        """By each weight's number its float32 form and moments, as Megatron describes them; of
        several ranks' weights those that this one writes."""
        if is_loading:
            return original(self, model_sharded_state_dict, is_loading, metadata)
        shards, _ = extract_sharded_tensors_and_factories(model_sharded_state_dict)
        of_model = {shard.data: shard for shard in nested_values(shards)}
        ranks, rank = self.data_parallel_group.size(), self.data_parallel_group.rank()
        weights = [weight for buffer in self.buffers for weight in buffer.param_index_map]
        here = ChainMap(
            *(
                bucket["param_map"]
                for by_type in self.gbuf_ranges
                for buckets in by_type.values()
                for bucket in buckets
            )
        )
        found = {}
        for number, weight in enumerate(weights):
            writer = number % ranks
            parts = _whole(self, weight, here.get(weight), writer)
            if rank == writer:
                found[number] = {
                    part: _described(of_model[weight], part, tensor)
                    for part, tensor in parts.items()
                }
        return found

    return state


def _whole(self: Any, weight: torch.Tensor, here: Any, writer: int) -> dict[str, torch.Tensor]:
    """A weight's state from all ranks that share it, in the weight's shape; on other ranks than the
    writer nothing.

    here: where this rank's part of it lies, or None.
    """
    parts = {} if here is None else self._get_main_param_and_optimizer_states(weight)
    group = self.data_parallel_group
    if group.size() == 1:
        return {name: parts[name].detach().view(weight.shape) for name in PARTS}
    sums = {name: _summed(weight, here, parts.get(name), group, writer) for name in PARTS}
    return {name: whole for name, whole in sums.items() if whole is not None}


def _summed(
    weight: torch.Tensor, here: Any, part: torch.Tensor | None, group: Any, writer: int
) -> torch.Tensor | None:
    """The parts of all ranks, each of which adds zeros for those of the others; for the writer, on
    the host."""
    whole = torch.zeros(weight.numel(), dtype=torch.float32, device=weight.device)
    if part is not None:
        whole[here["param"].start : here["param"].end] = part
    torch.distributed.all_reduce(whole, group=group)
    return whole.view(weight.shape).cpu() if group.rank() == writer else None


def _described(shard: Any, part: str, tensor: torch.Tensor) -> Any:
    """A weight's description for Megatron's checkpoints, of a part of its state."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    # One rank has it, which of the data parallel ones does not matter.
    described = replace(
        shard,
        key=f"optimizer.state.{part}.{shard.key}",
        data=tensor,
        replica_id=(*shard.replica_id[:-1], 0),
        **({} if isinstance(shard, ShardedTensorFactory) else {"dtype": tensor.dtype}),
    )
    described.validate_metadata_integrity()
    return described
