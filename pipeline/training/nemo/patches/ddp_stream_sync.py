"""Parameters that are where they belong before anyone reads them or uses their old memory again.

    with settled_parameters():
        trainer.fit(model, data)    # NeMo wraps the model in Megatron's DDP

Megatron's DDP copies what is trained into buffers of its own and frees where it was. NeMo 2.7 has
that done on a CUDA stream on the side (lightning/megatron_parallel.py, since NeMo#14077) and waits
for it nowhere: what is allocated next on the main stream can overwrite a parameter that is not yet
copied. Most often hit was the one copied last, an adapter of the first layer; a message between
ranks in its place made weights of 1e29 and gradients of an infinite norm, which clipping scales to
nothing, and a run that learned nothing and did not say so. Megatron-LM#2652 and
Megatron-Bridge#1706 mend the same in code that NeMo does not use.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from nemo.lightning.megatron_parallel import MegatronParallel

from pipeline.core.monkeypatch import replaced


def settled_parameters() -> AbstractContextManager[None]:
    """While the block runs: wrapping waits for all before it, and all after it for the wrapping."""
    init_ddp = MegatronParallel.init_ddp

    def waited(self: Any) -> None:
        torch.cuda.synchronize()
        init_ddp(self)
        torch.cuda.synchronize()

    return replaced([(MegatronParallel, "init_ddp", waited)])
