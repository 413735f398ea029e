"""What the machine has, read from files and NVML that the tests write."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core import hardware
from pipeline.core.hardware import GIB, Gpu

H200 = Gpu("NVIDIA H200", 140 * GIB, "9.0", mig=False)
A100 = Gpu("NVIDIA A100", 40 * GIB, "8.0", mig=True)


class NVMLError(Exception):
    pass


def fake_nvml(gpus: dict[str, Gpu], *, text: Callable[[str], Any] = str) -> SimpleNamespace:
    """The functions of an old pynvml that are used, over these GPUs by UUID."""
    uuids = list(gpus)

    def mig_mode(uuid: str) -> tuple[int, int]:
        if gpus[uuid].compute_capability < "8.0":
            raise NVMLError
        return int(gpus[uuid].mig), 0

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_DEVICE_MIG_ENABLE=1,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: text("580.65"),
        nvmlDeviceGetCount=lambda: len(uuids),
        nvmlDeviceGetHandleByIndex=lambda i: uuids[i],
        nvmlDeviceGetUUID=text,
        nvmlDeviceGetName=lambda u: text(gpus[u].name),
        nvmlDeviceGetMemoryInfo=lambda u: SimpleNamespace(total=gpus[u].memory_bytes),
        nvmlDeviceGetCudaComputeCapability=lambda u: tuple(
            map(int, gpus[u].compute_capability.split("."))
        ),
        nvmlDeviceGetMigMode=mig_mode,
    )


def with_instances(
    nvml: SimpleNamespace, gpus: dict[str, Gpu], instances: dict[str, dict[str, Gpu]]
) -> SimpleNamespace:
    """The same with nvidia-ml-py's functions for split GPUs; each has seven places."""

    def instance(uuid: str, place: int) -> str:
        if place >= len(instances[uuid]):
            raise NVMLError
        return list(instances[uuid])[place]

    every = gpus | {name: gpu for own in instances.values() for name, gpu in own.items()}
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda uuid: 7
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = instance
    nvml.nvmlDeviceGetName = lambda uuid: every[uuid].name
    nvml.nvmlDeviceGetMemoryInfo = lambda uuid: SimpleNamespace(total=every[uuid].memory_bytes)
    return nvml


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine where the driver's file is there and CUDA_VISIBLE_DEVICES is not set."""
    monkeypatch.setattr(hardware, "DRIVER_FILES", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.mark.parametrize("text", [str, str.encode])
def test_gpus_from_nvml(driver: pytest.MonkeyPatch, text: Callable[[str], Any]) -> None:
    old = Gpu("Tesla T4", 16 * GIB, "7.5", mig=False)
    gpus = {"GPU-aa": H200, "GPU-bb": A100, "GPU-cc": old}
    driver.setitem(sys.modules, "pynvml", fake_nvml(gpus, text=text))
    machine = hardware.inspect_machine()
    assert machine.gpus == (H200, A100, old)
    assert machine.driver == "580.65"


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("1", (A100,)),
        ("1,0", (A100, H200)),
        ("GPU-aa", (H200,)),
        ("MIG-1234", (A100,)),
        ("0,7,1", (H200,)),  # CUDA stops at the first that it does not know
        ("-1", ()),
        ("", ()),
    ],
)
def test_gpus_that_cuda_would_show(
    driver: pytest.MonkeyPatch, visible: str, gpus: tuple[Gpu, ...]
) -> None:
    driver.setitem(sys.modules, "pynvml", fake_nvml({"GPU-aa": H200, "GPU-bb": A100}))
    driver.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.inspect_machine().gpus == gpus


SMALL = Gpu("NVIDIA A100 MIG 1g.5gb", 5 * GIB, "8.0", mig=True)
LARGE = Gpu("NVIDIA A100 MIG 3g.20gb", 20 * GIB, "8.0", mig=True)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, (H200,)),  # whole GPUs, where there are some
        ("GPU-bb", (LARGE,)),
        ("1", (LARGE,)),
        ("MIG-small", (SMALL,)),
        ("MIG-small,MIG-large", (SMALL,)),  # a process sees one instance
        ("MIG-other", ()),
        ("GPU-cc", ()),  # split, and no instance was made
    ],
)
def test_a_split_gpu_is_the_instance_that_cuda_would_show(
    driver: pytest.MonkeyPatch, visible: str | None, gpus: tuple[Gpu, ...]
) -> None:
    cards = {"GPU-aa": H200, "GPU-bb": A100, "GPU-cc": A100}
    instances = {"GPU-bb": {"MIG-large": LARGE, "MIG-small": SMALL}, "GPU-cc": {}}
    driver.setitem(sys.modules, "pynvml", with_instances(fake_nvml(cards), cards, instances))
    if visible is not None:
        driver.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.inspect_machine().gpus == gpus


def test_a_machine_of_split_gpus_alone_has_one_instance(driver: pytest.MonkeyPatch) -> None:
    cards, instances = {"GPU-bb": A100}, {"GPU-bb": {"MIG-large": LARGE, "MIG-small": SMALL}}
    driver.setitem(sys.modules, "pynvml", with_instances(fake_nvml(cards), cards, instances))
    assert hardware.inspect_machine().gpus == (LARGE,)


def test_gpus_from_nvidia_smi(driver: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        "echo 'GPU-aa, NVIDIA H200, 143360, 9.0, Disabled, 580.65'\n"
        "echo 'GPU-bb, NVIDIA GB10, [N/A], 12.1, [N/A], 580.65'\n"
    )
    program.chmod(0o755)
    driver.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    driver.setitem(sys.modules, "pynvml", None)
    machine = hardware.inspect_machine()
    assert machine.gpus == (H200, Gpu("NVIDIA GB10", 0, "12.1", mig=False))
    assert machine.driver == "580.65"


def test_driver_that_does_not_answer(driver: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise NVMLError

    nvml = fake_nvml({"GPU-aa": H200})
    nvml.nvmlInit = fail
    driver.setitem(sys.modules, "pynvml", nvml)
    assert hardware.inspect_machine().gpus == ()
    driver.setitem(sys.modules, "pynvml", None)
    driver.setenv("PATH", str(tmp_path))
    assert hardware.inspect_machine().gpus == ()


def test_no_driver_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "DRIVER_FILES", ("/nowhere",))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml({"GPU-aa": H200}))
    assert hardware.inspect_machine().gpus == ()


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 4.0, 0),
        ({"/proc/meminfo": "MemTotal:  2048 kB\nMemFree: 9 kB\n"}, 4.0, 2**21),
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, 0),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 4.0, 0),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2.0,
            0,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4.0,
            0,
        ),
        (
            {
                "/proc/meminfo": "MemTotal:  2048 kB\n",
                "/sys/fs/cgroup/memory.max": "1048576\n",
            },
            4.0,
            2**20,
        ),
        (
            {"/proc/meminfo": "MemTotal:  2048 kB\n", "/sys/fs/cgroup/memory.max": "max\n"},
            4.0,
            2**21,
        ),
    ],
)
def test_limits_of_containers(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: float, memory: int
) -> None:
    monkeypatch.setattr(hardware, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    machine = hardware.inspect_machine()
    assert (machine.cores, machine.memory_bytes) == (cores, memory)


def test_description_is_json_and_quick() -> None:
    begin = time.perf_counter()
    described = hardware.describe()
    assert time.perf_counter() - begin < 0.5
    assert described["python"] == sys.version.split()[0]
    assert described["memory_bytes"] > 0
    assert json.loads(json.dumps(described))["cores"] == described["cores"] > 0


def test_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"nemo_toolkit": "3.0.0", "megatron-core": "0.15.3", "tensorrt_llm": "1.3.0rc21"}
    monkeypatch.setattr(hardware, "installed_version", versions.get)
    found = hardware.find_conflicts()
    assert set(found) == {"nemo_toolkit", "tensorrt_llm"}
    assert found["nemo_toolkit"].startswith("3.0.0 has no nemo.collections.llm")


def test_installed_version() -> None:
    assert hardware.installed_version("pytest") == pytest.__version__
    assert hardware.installed_version("no-such-package") is None


def test_free_disk_of_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    assert hardware.free_disk_bytes(tmp_path / "a" / "b") > 0


def test_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pipeline.core import hardware as h; h.describe(); h.find_conflicts(); "
        "print({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
