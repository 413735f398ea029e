"""Gradients through adapters where ranks share the tokens of a row (sequence parallel).

    with adapters_that_gather():
        trainer.fit(model, data)    # NeMo makes the adapter

A layer with a norm before it passes the normed tokens to its adapter. NeMo asks Transformer Engine
to gather those of all ranks. Transformer Engine 2.9 then drops the gradient that comes back for
them: its backward pass adds the adapter's gradient only if the tokens are not gathered
(module/layernorm_linear.py; the line that added the other came with NVIDIA/TransformerEngine#697
and was lost). The loss still falls, a little more slowly, as the base's own gradient is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pipeline.core.monkeypatch import replaced
from pipeline.training.nemo.patches.records import DORA_GATHERING, LORA_GATHERING


def adapters_that_gather() -> AbstractContextManager[None]:
    """While the block runs, adapters gather their tokens themselves, as they do on other layers."""
    return replaced(
        replacement
        for patch in (LORA_GATHERING, DORA_GATHERING)
        for replacement in patch.by(
            get_adapter_attributes_from_linear=gathering(
                patch.original("get_adapter_attributes_from_linear")
            )
        )
    )


def gathering(attributes_of: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
    """NeMo's function, for layers that return only this rank's tokens.

    Its fourth result turns off the adapter's own gathering.
    """

    def run(layer: Any) -> tuple[Any, ...]:
        parallel, inputs, outputs, gathered, *rest = attributes_of(layer)
        if getattr(layer, "return_layernorm_output_gathered", False):
            layer.return_layernorm_output_gathered = gathered = False
        return parallel, inputs, outputs, gathered, *rest

    return run
