"""Who holds GPU memory, from an NVML that the tests write."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.gpu_use import Holder, gpu_use
from pipeline.core.hardware import GIB


class NVMLError(Exception):
    pass


def fake_nvml(*, free: int = 20, processes: Any = ()) -> SimpleNamespace:
    """Two GPUs of 140 GiB; on the second one `free` GiB are free and `processes` run."""
    running = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes]
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: f"GPU-{'ab'[index]}",
        nvmlDeviceGetName=lambda index: b"NVIDIA H200",
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(
            total=140 * GIB, free=(free if index else 139) * GIB
        ),
        nvmlDeviceGetComputeRunningProcesses=lambda index: running if index else [],
    )


def test_processes_are_named_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, gone = os.getppid(), 2**22 + 1
    processes = [(parent, 20 * GIB), (gone, 90 * GIB), (os.getpid(), 5 * GIB), (1, None)]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(processes=processes))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second = gpu_use()
    assert (first.index, first.holders) == (0, ())
    assert (second.index, second.free, second.total) == (1, 20 * GIB, 140 * GIB)
    assert [holder.process for holder in second.holders] == [gone, parent, 1]
    assert str(second.holders[0]) == f"process {gone} (of another container) uses 90.0 GiB"
    assert str(second.holders[1]).startswith(f"process {parent} (")
    assert str(Holder(1, "init", None)) == "process 1 (init) uses some memory"


def test_only_gpus_that_cuda_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert [use.index for use in gpu_use()] == [1]


def test_a_driver_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NVMLError

    for broken in ("nvmlInit", "nvmlDeviceGetMemoryInfo"):
        nvml = fake_nvml()
        setattr(nvml, broken, fail)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        assert gpu_use() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_use() == []
