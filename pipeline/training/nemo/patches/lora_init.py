"""The initial values of a LoRA adapter: the same on every machine and in every layout.

    with seeded_lora_init(seed):
        trainer.fit(model, data)    # NeMo makes the adapter

NeMo draws them on the GPU, rank by rank, layer after layer: a run on a CPU, or with another tensor
or pipeline parallel size, would start and end with other weights.
"""

from __future__ import annotations

import copy
import hashlib
import re
from contextlib import AbstractContextManager
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from pipeline.core.monkeypatch import replaced
from pipeline.training.nemo.patches.records import LORA_INIT

_LAYER = re.compile(r"\blayers\.(\d+)\.(.+)$")


def seeded_lora_init(seed: int) -> AbstractContextManager[None]:
    """While the block runs, each layer's adapter is drawn from the seed and the layer's name."""
    original = LORA_INIT.original("__init__")

    def __init__(
        self: Any, *sizes: Any, base_linear_name: str, model_parallel_config: Any, **rest: Any
    ) -> None:
        # Megatron then draws whole matrices in float32 and gives each rank its part.
        config = copy.copy(model_parallel_config)
        config.use_cpu_initialization = True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(seed, base_linear_name, config))
            original(
                self,
                *sizes,
                base_linear_name=base_linear_name,
                model_parallel_config=config,
                **rest,
            )
        if torch.cuda.is_available():
            self.cuda()

    return replaced(LORA_INIT.by(__init__=__init__))


def _seed(seed: int, module: str, config: Any) -> int:
    found = _LAYER.search(module)
    assert found, module  # every linear layer that has an adapter is in a layer of the decoder
    layer = int(found[1]) + get_transformer_layer_offset(config)
    digest = hashlib.sha256(f"{seed} {layer} {found[2]}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % 2**63
