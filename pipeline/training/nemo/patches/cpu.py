"""Runs the real NeMo 2.7.3 and Megatron-Core 0.15.3 on a machine without a GPU.

Megatron-Core was written for CUDA and calls `torch.cuda` in places where nothing is computed on a
GPU: to name the current device, to seed, to wait for a stream. `cpu_megatron()` answers those
calls while it is entered, and puts everything back on leaving. On a machine with CUDA it does
nothing, so the same code runs on both.

It knows nothing of models, data or training. Everything replaced is listed in `_torch_patches` and
`_device_patches` (torch) and `_vendor_patches` (Megatron-Core, NeMo), each with its reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.core.monkeypatch import Patch, replaced

if TYPE_CHECKING:
    import torch

_depth = 0  # entered contexts, so that nesting patches once


@contextmanager
def cpu_megatron() -> Iterator[None]:
    """Stand-ins for `torch.cuda` and the CUDA-only corners of Megatron-Core and NeMo, on CPU.

    Enter it in the thread that computes, around everything that NeMo does. It may be nested; the
    outermost one counts. Entering imports NeMo, which takes seconds.
    """
    global _depth
    import torch

    if torch.cuda.is_available() or _depth:
        yield
        return
    _depth += 1
    try:
        vendor = _vendor_patches()  # imports; torch.compile's tables must see torch as it is
        with replaced([*vendor, *_torch_patches(), *_device_patches()]):
            yield
    finally:
        _depth -= 1


class _Stream:
    """A CUDA stream or event where all work is already done when it is asked about."""

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
    """The CPU has nothing to do here."""


def _no_generator_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    """What is kept of a device's generator where there is no device."""
    import torch

    return torch.empty(0, dtype=torch.uint8)


def _torch_patches() -> list[Patch]:
    import torch

    cuda = torch.cuda
    return [
        # Buffers are allocated on, and batches moved to, "the current device".
        (cuda, "current_device", lambda: torch.device("cpu")),
        (cuda, "set_device", _nothing),
        # CPU operators have finished when they return: there is nothing to wait for.
        (cuda, "synchronize", _nothing),
        (cuda, "Stream", _Stream),
        (cuda, "Event", _Stream),
        (cuda, "stream", lambda stream: _Stream()),
        (cuda, "current_stream", lambda *args: _Stream()),
        (cuda, "default_stream", lambda *args: _Stream()),
        # There is no device generator. torch.manual_seed has seeded the one generator there is.
        (cuda, "manual_seed", _nothing),
        (cuda, "get_rng_state", _no_generator_state),
        (cuda, "set_rng_state", _nothing),
        # The profiler's range marks are missing from CPU builds and raise.
        (cuda.nvtx, "range_push", _nothing),
        (cuda.nvtx, "range_pop", _nothing),
        # Legacy tensor types, used as constructors and in isinstance checks.
        *(
            (cuda, name, getattr(torch, name))
            for name in ("FloatTensor", "HalfTensor", "BFloat16Tensor", "IntTensor", "LongTensor")
        ),
    ]


# Functions that make tensors on a device given by name.
_FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye", "full", "full_like"),
    *("linspace", "ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like"),
    *("randperm", "tensor", "tril_indices", "zeros", "zeros_like"),
)


def _device_patches() -> list[Patch]:
    """The device "cuda" is the CPU, wherever tensors are made or moved.

    Only functions that take a device are wrapped: a torch function mode would put Python in front
    of every operator, a fifth of a small model's training step.
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

    return [
        *((torch, name, on_cpu(getattr(torch, name))) for name in _FACTORIES),
        (torch.Tensor, "to", on_cpu(torch.Tensor.to)),
        (torch.Tensor, "cuda", itself),
        (torch.Tensor, "pin_memory", itself),
    ]


def _vendor_patches() -> list[Patch]:
    import megatron.core.optimizer.optimizer as mcore_optimizer
    import megatron.core.tensor_parallel.random as mcore_random
    import nemo.collections.llm.peft.lora as nemo_lora
    import nemo.collections.llm.peft.utils as nemo_peft_utils
    import nemo.lightning.io.pl as nemo_checkpoint_io

    class Never:
        """A class that nothing is an instance of."""

    return [
        # The tracker keeps one generator state a name, filled only where there is a GPU. On the
        # CPU the default generator serves; weights are made with use_cpu_initialization, which
        # draws the whole matrix on every rank and keeps its own part.
        (mcore_random.CudaRNGStatesTracker, "fork", lambda self, name="": nullcontext()),
        # These two reach below torch.cuda's public functions.
        (mcore_random, "_get_cuda_rng_state", _no_generator_state),
        (mcore_random, "_set_cuda_rng_state", _nothing),
        # Asserts the type name "torch.cuda.FloatTensor".
        (mcore_optimizer, "clip_grad_by_total_norm_fp32", _clip_gradients),
        # Asserts that CUDA is initialised, then moves CUDA tensors between GPUs: there are none.
        (nemo_checkpoint_io, "_fix_tensors_device", lambda checkpoint: checkpoint),
        # Compares classes with te.Linear where `te` is a placeholder without attributes.
        (nemo_lora, "te", SimpleNamespace(Linear=Never, LayerNormLinear=Never)),
        # Decides by an import that succeeds without Transformer Engine, and then asks the
        # layers for attributes that only Transformer Engine's have.
        (nemo_peft_utils, "HAVE_TE", False),
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
