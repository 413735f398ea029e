"""Who uses the GPUs that this process sees: their free memory, and which process holds how much.

Asks NVML, which the environment's pynvml or nvidia-ml-py brings. Imports no torch.
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
    """A process with memory of a GPU. size: in bytes, None where the driver does not say."""

    process: int
    command: str
    size: int | None

    def __str__(self) -> str:
        size = "some of it" if self.size is None else f"{self.size / GIB:.1f} GiB"
        return f"process {self.process} ({self.command}) holds {size}"


@dataclass(frozen=True)
class GpuUse:
    """A GPU's memory in bytes, and its holders, the largest first. index: as nvidia-smi counts."""

    index: int
    name: str
    total: int
    free: int
    holders: tuple[Holder, ...]
    mig: bool = False


def gpu_use() -> list[GpuUse]:
    """The GPUs that CUDA would show to this process, in its order; [] where NVML does not tell."""
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
    """Its first words; a process of another container cannot be seen from here."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "of another container"
    return " ".join(words).strip()[:60] or "of the system"
