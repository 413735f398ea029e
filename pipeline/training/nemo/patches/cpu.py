"""Runs the real NeMo 2.7.3 and Megatron-Core 0.15.3 on a machine without a GPU.

Megatron-Core was written for CUDA and calls `torch.cuda` where nothing is computed on a GPU: to
name the current device, to seed, to wait for a stream. `cpu_megatron()` answers those calls and
restores everything on leaving. On a machine with CUDA it does nothing, so the same code runs on
both. It knows nothing of models, data or training. The reasons are in records.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.core.monkeypatch import Replacement, replaced
from pipeline.training.nemo.patches import records

if TYPE_CHECKING:
    import torch

_depth = 0  # contexts entered, so that only the outermost one replaces anything


@contextmanager
def cpu_megatron() -> Iterator[None]:
    """Replaces `torch.cuda` and the CUDA-only parts of Megatron-Core and NeMo, on a CPU.

    Enter it in the thread that computes, around everything that NeMo does. It may be nested; only
    the outermost one has an effect. Entering imports NeMo, which takes seconds.
    """
    global _depth
    import torch

    if torch.cuda.is_available() or _depth:
        yield
        return
    _depth += 1
    try:
        # First, as it imports NeMo: torch.compile's tables must see torch as it is.
        vendor = _vendor_replacements()
        with replaced([*vendor, *_torch_replacements(), *_device_replacements()]):
            yield
    finally:
        _depth -= 1


class _Stream:
    """A CUDA stream or event whose work is always done already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, *args: Any) -> None: ...

    def wait_event(self, *args: Any) -> None: ...

    def wait(self, *args: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def record_event(self, *args: Any) -> _Stream:
        return self

    def elapsed_time(self, *args: Any) -> float:
        return 0.0


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A CPU has nothing to do here."""


def _no_generator_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    """The state of a device's generator where there is no device: empty."""
    import torch

    return torch.empty(0, dtype=torch.uint8)


def _torch_replacements() -> list[Replacement]:
    import torch

    return [
        *records.CUDA_DEVICE.by(
            current_device=lambda: torch.device("cpu"),
            set_device=_nothing,
        ),
        *records.CUDA_STREAMS.by(
            synchronize=_nothing,
            Stream=_Stream,
            Event=_Stream,
            stream=lambda stream: _Stream(),
            current_stream=lambda *args: _Stream(),
            default_stream=lambda *args: _Stream(),
        ),
        *records.CUDA_RANDOM.by(
            manual_seed=_nothing,
            get_rng_state=_no_generator_state,
            set_rng_state=_nothing,
        ),
        *records.CUDA_PROFILER.by(range_push=_nothing, range_pop=_nothing),
        *records.CUDA_TENSOR_TYPES.by(
            **{name: getattr(torch, name) for name in records.CUDA_TENSOR_TYPES.names}
        ),
    ]


def _device_replacements() -> list[Replacement]:
    """The device "cuda" is the CPU, wherever tensors are made or moved.

    Only functions that take a device are wrapped. A torch function mode would run Python code
    before every operator, which takes a fifth of a small model's training step.
    """
    import torch

    def is_cuda(value: Any) -> bool:
        if isinstance(value, torch.device):
            return value.type == "cuda"
        return isinstance(value, str) and value.startswith("cuda")

    def on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_cuda(kwargs.get("device")):
                kwargs["device"] = "cpu"
            kwargs.pop("pin_memory", None)  # memory that a GPU could read
            return function(*("cpu" if is_cuda(arg) else arg for arg in args), **kwargs)

        return call

    def itself(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor

    factories, moves = records.TENSOR_FACTORIES, records.TENSOR_MOVES
    return [
        *factories.by(**{name: on_cpu(factories.original(name)) for name in factories.names}),
        *moves.by(to=on_cpu(moves.original("to")), cuda=itself, pin_memory=itself),
    ]


def _vendor_replacements() -> list[Replacement]:
    from pipeline.training.nemo.patches.zero_centered_norm import zero_centered_norms

    class Never:
        """A class that nothing is an instance of."""

    return [
        *records.RNG_TRACKER.by(fork=lambda self, name="": nullcontext()),
        *records.RNG_STATE.by(
            _get_cuda_rng_state=_no_generator_state, _set_cuda_rng_state=_nothing
        ),
        *zero_centered_norms(),
        *records.CLIPPING.by(clip_grad_by_total_norm_fp32=_clip_gradients),
        *records.LOADED_TENSORS.by(_fix_tensors_device=lambda checkpoint: checkpoint),
        *records.LORA_LAYER_TYPES.by(te=SimpleNamespace(Linear=Never, LayerNormLinear=Never)),
        *records.LORA_TRANSFORMER_ENGINE.by(HAVE_TE=False),
        *records.ROUTER_PRODUCT.by(te_general_gemm=None),
    ]


def _clip_gradients(
    parameters: Any, max_norm: float, total_norm: float, use_decoupled_grad: bool = False
) -> None:
    """Scale the gradients in place so that their norm is at most `max_norm`, as Megatron does."""
    scale = max_norm / (total_norm + 1.0e-6)
    if scale < 1.0:
        name = "decoupled_grad" if use_decoupled_grad else "grad"
        for parameter in parameters:
            gradient = getattr(parameter, name, None)
            if gradient is not None:
                gradient.detach().mul_(scale)
