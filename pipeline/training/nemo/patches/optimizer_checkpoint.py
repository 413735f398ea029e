"""The optimizer's state in a checkpoint, weight by weight.

For a checkpoint that another layout can resume from (`fully_reshardable`), Megatron-Core 0.15
gathers the state of all weights at once: 8 bytes a weight of the GPU beside the model, its
gradients and the state itself, and 24 of the host on every rank. A full fine-tune that fits while
it trains would run out of memory when it saves. Here one weight's state is gathered at a time, and
each rank keeps its share of them until they are written. What is written is the same.

When a run resumes, Transformer Engine 2.9 copies the state twice: the GPU then holds 26 bytes a
weight where training takes 16. Here the state is used without a copy.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import OPTIMIZER_LOAD, OPTIMIZER_SAVE

PARTS = ("param", "exp_avg", "exp_avg_sq")


def streamed_optimizer_state() -> list[Replacement]:
    """Replacements in Megatron-Core and Transformer Engine while a model is trained."""
    original = OPTIMIZER_SAVE.original("sharded_param_state_fully_reshardable")
    return [
        *OPTIMIZER_SAVE.by(sharded_param_state_fully_reshardable=_streamed(original)),
        *OPTIMIZER_LOAD.by(load_state_dict=adopt),
    ]


def adopt(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Give an optimizer its state without a copy.

    The tensors already have the optimizer's types and device, as Megatron-Core makes them before it
    reads a checkpoint into them.
    """
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
        """The float32 weight and its moments as Megatron describes them, by the weight's number.

        With several ranks: those of the weights that this one writes.
        """
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
    """A weight's state from all ranks that share it, in the weight's shape; {} on other ranks than
    the writer.

    here: where this rank's part of it is, or None.
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
    """The parts of all ranks, on the writer's host. Each rank adds zeros for the others' parts."""
    whole = torch.zeros(weight.numel(), dtype=torch.float32, device=weight.device)
    if part is not None:
        whole[here["param"].start : here["param"].end] = part
    torch.distributed.all_reduce(whole, group=group)
    return whole.view(weight.shape).cpu() if group.rank() == writer else None


def _described(shard: Any, part: str, tensor: torch.Tensor) -> Any:
    """The description of a part of a weight's state, for Megatron's checkpoints."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    # One rank has it; which of the data parallel ones does not matter.
    described = replace(
        shard,
        key=f"optimizer.state.{part}.{shard.key}",
        data=tensor,
        replica_id=(*shard.replica_id[:-1], 0),
        **({} if isinstance(shard, ShardedTensorFactory) else {"dtype": tensor.dtype}),
    )
    described.validate_metadata_integrity()
    return described
