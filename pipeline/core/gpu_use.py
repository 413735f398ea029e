"""Which processes use the GPUs that this process can see, and how much memory is free.

Uses NVML, which pynvml or nvidia-ml-py provides. Does not import torch.
"""

import importlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.hardware import GIB, text_of, visible


@dataclass(frozen=True)
class Holder:
    """A process that uses GPU memory. size: in bytes; None if the driver does not report it."""

    process: int
    command: str
    size: int | None

    def __str__(self) -> str:
        size = "some memory" if self.size is None else f"{self.size / GIB:.1f} GiB"
        return f"process {self.process} ({self.command}) uses {size}"


@dataclass(frozen=True)
class GpuUse:
    """A GPU's memory in bytes, and the processes that use it. index: of nvidia-smi."""

    index: int
    name: str
    total: int
    free: int
    holders: tuple[Holder, ...]
    mig: bool = False


def gpu_use() -> list[GpuUse]:
    """The GPUs that CUDA would show to this process, in its order; [] if NVML fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return []
    except nvml.NVMLError:
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        by_uuid = {
            text_of(nvml.nvmlDeviceGetUUID(handle)): _ask(nvml, index, handle)
            for index, handle in enumerate(handles)
        }
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()
    return visible(by_uuid)


def _ask(nvml: Any, index: int, handle: Any) -> GpuUse:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    holders = [
        Holder(found.pid, _command(found.pid), found.usedGpuMemory)
        for found in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        if found.pid != os.getpid()
    ]
    holders.sort(key=lambda holder: -(holder.size or 0))
    name = text_of(nvml.nvmlDeviceGetName(handle))
    return GpuUse(index, name, int(memory.total), int(memory.free), tuple(holders))


def _command(process: int) -> str:
    """The start of its command line; a process of another container cannot be seen."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "of another container"
    return " ".join(words).strip()[:60] or "of the system"
