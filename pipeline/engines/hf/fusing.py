"""Fewer and larger kernels for a model of transformers, with the same results up to rounding.

Between two matrix products transformers launches up to ten kernels for a norm, and as many for the
rotation of queries and keys: these are compiled into one each. Products of the same input (queries,
keys and values; gate and up) become one. For few tokens each kernel takes as long as reading its
share of the weights.
"""

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.compilation import compile_in_this_process

if TYPE_CHECKING:
    import torch

ROTATION = "apply_rotary_pos_emb"
ATTENTION = ("q_proj", "k_proj", "v_proj")
FEED_FORWARD = ("gate_proj", "up_proj")
# The computation of most feed-forward layers, as transformers writes it.
GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"


def fuse(model: Any) -> None:
    """Change a model in place. The first passes then take some seconds, which compile kernels.

    Without a C compiler, which Triton needs, only the products change.
    """
    compiled = _compile()

    for cls in {type(module) for module in model.modules()}:
        if not cls.__module__.startswith("transformers.models."):
            continue
        if cls.__name__.endswith("Norm"):
            cls.forward = compiled(cls.forward)
        source = sys.modules[cls.__module__]
        if hasattr(source, ROTATION) and not hasattr(getattr(source, ROTATION), "__wrapped__"):
            setattr(source, ROTATION, compiled(getattr(source, ROTATION)))
    for module in model.modules():
        if merged := _merged(module, ATTENTION):
            _share_input(module, merged)
        elif _is_gated(module) and (merged := _merged(module, FEED_FORWARD)):
            _gate_at_once(module, merged, compiled(_gated))


def has_compiler() -> bool:
    """Whether there is a C compiler, with which Triton makes the code that starts a kernel."""
    return any(shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "clang") if name)


def _compile() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What compiles a function for any shape; it leaves it as it is if there is no compiler."""
    import torch

    if not has_compiler():
        return lambda function: function
    compile_in_this_process()
    return lambda function: torch.compile(function, dynamic=True)


def _has(module: Any, names: Sequence[str]) -> bool:
    import torch

    return all(type(getattr(module, name, None)) is torch.nn.Linear for name in names)


def _is_gated(module: Any) -> bool:
    return _has(module, FEED_FORWARD) and GATED in inspect.getsource(type(module).forward)


def _merged(module: Any, names: Sequence[str]) -> "tuple[torch.Tensor, torch.Tensor | None] | None":
    """Weight and bias of the layers' product as one; the layers then hold parts of them. None if
    they are not alike."""
    import torch

    if not _has(module, names):
        return None
    layers = [getattr(module, name) for name in names]
    biases = [layer.bias for layer in layers]
    if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
        return None
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight.data for layer in layers])
    bias = None if biases[0] is None else torch.cat([bias.data for bias in biases])
    for layer, part in zip(layers, weight.split(sizes), strict=True):
        layer.weight.data = part
    if bias is not None:
        for layer, part in zip(layers, bias.split(sizes), strict=True):
            layer.bias.data = part
    return weight, bias


def _share_input(module: Any, merged: "tuple[torch.Tensor, torch.Tensor | None]") -> None:
    """Have the first layer compute the products of all, of which the others return their part."""
    import torch

    weight, bias = merged
    layers = [getattr(module, name) for name in ATTENTION]
    sizes = [layer.out_features for layer in layers]
    ready: list[Any] = [None, ()]  # the input, and the products that were not asked for yet

    def first(x: "torch.Tensor") -> "torch.Tensor":
        found = torch.nn.functional.linear(x, weight, bias).split(sizes, -1)
        ready[:] = [x, found]
        return found[0]

    def other(number: int, layer: Any) -> Any:
        plain = layer.forward

        def forward(x: "torch.Tensor") -> "torch.Tensor":
            if x is not ready[0]:
                return plain(x)
            found = ready[1][number]
            if number == len(layers) - 1:
                ready[:] = [None, ()]
            return found

        return forward

    layers[0].forward = first
    for number, layer in enumerate(layers[1:], 1):
        layer.forward = other(number, layer)


def _gate_at_once(
    module: Any, merged: "tuple[torch.Tensor, torch.Tensor | None]", gated: Callable[..., Any]
) -> None:
    """Compute gate and up in one product, unless a LoRA adapter has taken a layer's place."""
    import torch

    weight, bias = merged
    plain, act = module.forward, module.act_fn

    def forward(x: "torch.Tensor") -> "torch.Tensor":
        if not _has(module, FEED_FORWARD):
            return plain(x)
        return module.down_proj(gated(act, torch.nn.functional.linear(x, weight, bias)))

    module.forward = forward


def _gated(act: Any, both: "torch.Tensor") -> "torch.Tensor":
    gate, up = both.chunk(2, -1)
    return act(gate) * up
