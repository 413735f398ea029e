"""Waits until Megatron's DDP has moved the parameters before anything reads or overwrites them.

    with synchronized_ddp():
        trainer.fit(model, data)    # NeMo wraps the model in Megatron's DDP

Megatron's DDP copies trained parameters into its own buffers and frees their old memory. NeMo 2.7
does this on a side stream of CUDA (lightning/megatron_parallel.py, since NeMo#14077) and waits for
it nowhere: what the main stream allocates next can overwrite a parameter that is not copied yet.
The one copied last was hit most often, an adapter of the first layer. A message between ranks in
its place made weights of 1e29 and gradients of an infinite norm, which clipping scales to zero: the
run learned nothing and did not report it. Megatron-LM#2652 and Megatron-Bridge#1706 fix the same in
code that NeMo does not use.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from pipeline.core.monkeypatch import replaced
from pipeline.training.nemo.patches.records import DDP_WRAPPING


def synchronized_ddp() -> AbstractContextManager[None]:
    """While the block runs, the GPU is synchronized before and after a model is wrapped."""
    init_ddp = DDP_WRAPPING.original("init_ddp")

    def synchronized(self: Any) -> None:
        torch.cuda.synchronize()
        init_ddp(self)
        torch.cuda.synchronize()

    return replaced(DDP_WRAPPING.by(init_ddp=synchronized))
