"""Gradients through adapters where ranks share the tokens of a row (sequence parallel).

    with whole_gradients():
        trainer.fit(model, data)    # NeMo makes the adapter

A layer with a norm before it gives its adapter the normed tokens. NeMo asks Transformer Engine for
those of all ranks, gathered; and Transformer Engine 2.9 then forgets what comes back for them: its
backward pass adds the adapter's gradient only if they are not gathered (module/layernorm_linear.py,
since the line that added the other went astray; it came with NVIDIA/TransformerEngine#697). The
loss falls all the same, a little more slowly, for the base's own gradient is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from nemo.collections.llm.peft import dora, lora

from pipeline.core.monkeypatch import replaced


def whole_gradients() -> AbstractContextManager[None]:
    """While the block runs adapters gather their tokens themselves, as they do on other layers."""
    name = "get_adapter_attributes_from_linear"
    return replaced([(m, name, gathering(getattr(m, name))) for m in (lora, dora)])


def gathering(attributes_of: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
    """NeMo's function, for layers that give what this rank has. Its fourth result turns off the
    adapter's own gathering."""

    def run(layer: Any) -> tuple[Any, ...]:
        parallel, inputs, outputs, gathered, *rest = attributes_of(layer)
        if getattr(layer, "return_layernorm_output_gathered", False):
            layer.return_layernorm_output_gathered = gathered = False
        return parallel, inputs, outputs, gathered, *rest

    return run
