"""What this machine has: GPUs, cores, memory, disk, and which runtimes are installed.

Imports neither torch nor any runtime, so it takes milliseconds and works where nothing else does.
"""

import csv
import functools
import gc
import importlib
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from ctypes import CDLL
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

GIB = 2**30
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")  # there is no GPU to ask for without one
# The libraries that decide what can run, by what they do here; engines' own are in their records.
LIBRARIES = {
    "torch": "tensors",
    "transformers": "HF models",
    "nemo_toolkit": "training, import, merge",
    "megatron-core": "training, import, merge",
    "transformer-engine": "training on GPUs",
    "nvidia-modelopt": "quantization, export",
}
# Versions that do not work here, and why.
CONFLICTS = {
    "nemo_toolkit": (">=3", "has no nemo.collections.llm any more: 2.7.3 is the last with it"),
    "megatron-core": (">=0.17", "is not known to work with NeMo 2.7: take 0.15.3"),
    "transformers": (">=5", "is over what NeMo 2.7 and ModelOpt 0.37 allow: take 4.57.6"),
    "nvidia-modelopt": (">=0.38", "names its formats otherwise: take 0.37.0"),
    "onnxruntime-genai": (">=0.13", "may need transformers 5: take 0.12.2"),
    "tensorrt_llm": (">=1.3.0rc21", "has no trtllm-build any more: take 1.2.1"),
    "numpy": (">=2", "is over what NeMo 2.7 allows: take 1.26.4"),
}


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, or with `mig` one instance of a partitioned GPU (Multi-Instance GPU)."""

    name: str
    memory_bytes: int
    compute_capability: str  # such as 9.0
    mig: bool

    @property
    def capability(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.compute_capability.split("."))


@dataclass(frozen=True)
class _Card:
    """A GPU as the driver reports it. instances: of a partitioned GPU, by UUID; None if unknown."""

    gpu: Gpu
    instances: Mapping[str, Gpu] | None

    @property
    def mig(self) -> bool:
        return self.gpu.mig


@dataclass(frozen=True)
class Machine:
    """This machine, as far as this process may use it (container limits, CUDA_VISIBLE_DEVICES)."""

    system: str
    python: str
    cpu: str
    cores: float
    memory_bytes: int
    driver: str | None
    gpus: tuple[Gpu, ...]


def inspect_machine() -> Machine:
    driver, gpus = _nvidia()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        driver=driver,
        gpus=tuple(gpus),
    )


def describe() -> dict[str, Any]:
    """The machine as a manifest records it, ready for JSON."""
    return asdict(inspect_machine())


def free_disk_bytes(folder: Path) -> int:
    """Free space on the disk where a folder is, or would be created."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@functools.cache
def installed_version(package: str) -> str | None:
    """A package's version, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {name: installed_version(name) for name in packages}
    return {name: version for name, version in found.items() if version}


def find_conflicts() -> dict[str, str]:
    """Installed packages whose version does not work here, with the reason."""
    from packaging.specifiers import SpecifierSet

    found = {}
    for package, (versions, reason) in CONFLICTS.items():
        version = installed_version(package)
        if version and SpecifierSet(versions, prereleases=True).contains(version):
            found[package] = f"{version} {reason}"
    return found


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> float:
    """Cores that this process may use; a container's quota can be a fraction."""
    cores = float(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) != 2:
        quota = [
            _read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
    if all(part.isdigit() and part != "0" for part in quota):
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return round(cores, 2)


def _memory_bytes() -> int:
    """Memory of the machine, or the container's part of it; 0 if the system does not say."""
    sizes = [
        1024 * int(line.split()[1])
        for line in _read("/proc/meminfo").splitlines()
        if line.startswith("MemTotal:")
    ]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (text := _read(file).strip()).isdigit():
            sizes.append(int(text))
    return min(sizes, default=0)


def free_memory_bytes() -> int:
    """Memory that a new process can have, of the machine or the container; 0 if the system does
    not say."""
    free = [
        1024 * int(line.split()[1])
        for line in _read("/proc/meminfo").splitlines()
        if line.startswith("MemAvailable:")
    ]
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        cached = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
        free.append(int(limit) - int(used) + int(cached.get("inactive_file", 0)))
    return max(0, min(free, default=0))


def threads_for(most: int) -> int:
    """Threads that copy between disk and memory: `most`, or the cores where there are fewer.

    More would not be faster, and each holds what it copies.
    """
    return max(1, min(most, round(usable_cores())))


def give_back_memory() -> None:
    """Free what nothing refers to any more, and give the system what the allocator keeps of it.

    After a model: objects that refer to each other live on until Python looks for them.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # glibc's
        CDLL(None).malloc_trim(0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _nvidia() -> tuple[str | None, list[Gpu]]:
    """The driver's version and the GPUs that CUDA would show to this process."""
    if not any(Path(path).exists() for path in DRIVER_FILES):
        return None, []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # an old package of that name may shadow it
            nvml = importlib.import_module("pynvml")
    except ImportError:
        return _ask_nvidia_smi()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None, []
    try:
        driver = text_of(nvml.nvmlSystemGetDriverVersion())
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        by_uuid = {
            text_of(nvml.nvmlDeviceGetUUID(handle)): _ask_nvml(nvml, handle) for handle in handles
        }
    finally:
        nvml.nvmlShutdown()
    return driver, _shown(visible(by_uuid), list(by_uuid.values()))


def _ask_nvml(nvml: Any, handle: Any) -> _Card:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # a card without MIG
        mig = False

    def gpu(device: Any) -> Gpu:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(device).total)
        return Gpu(text_of(nvml.nvmlDeviceGetName(device)), memory, f"{major}.{minor}", mig)

    # An old package of that name knows nothing of instances.
    if not mig or not hasattr(nvml, "nvmlDeviceGetMigDeviceHandleByIndex"):
        return _Card(gpu(handle), None)
    instances = {}
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError:  # no instance in this place
            continue
        instances[text_of(nvml.nvmlDeviceGetUUID(instance))] = gpu(instance)
    return _Card(gpu(handle), instances)


def _shown(cards: Sequence[_Card], every: Sequence[_Card]) -> list[Gpu]:
    """What CUDA shows of these cards: whole GPUs if there are any, else one instance of a
    partitioned GPU, the first or the one that a UUID names (NVIDIA's MIG user guide, "Device
    enumeration").

    every: all cards of the machine.
    """
    if all(card.instances is None for card in every):
        return [card.gpu for card in cards]
    if whole := [card.gpu for card in cards if not card.mig]:
        return whole
    instances = {u: gpu for card in every for u, gpu in (card.instances or {}).items()}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.startswith("MIG-"):
        return [gpu for uuid, gpu in instances.items() if uuid.startswith(first)][:1]
    return [gpu for card in cards for gpu in (card.instances or {}).values()][:1]


def _ask_nvidia_smi() -> tuple[str | None, list[Gpu]]:
    fields = "uuid,name,memory.total,compute_cap,mig.mode.current,driver_version"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None, []
    rows = [row for row in csv.reader(answer.splitlines(), skipinitialspace=True) if len(row) == 6]
    by_uuid = {
        # A GPU that shares the machine's memory has no size of its own.
        uuid: Gpu(
            name, int(memory) * 2**20 if memory.isdigit() else 0, capability, mig == "Enabled"
        )
        for uuid, name, memory, capability, mig, _ in rows
    }
    return (rows[0][5] if rows else None), visible(by_uuid)


class _Splittable(Protocol):
    @property
    def mig(self) -> bool: ...


Device = TypeVar("Device", bound=_Splittable)


def visible(gpus: Mapping[str, Device]) -> list[Device]:
    """The GPUs that CUDA would show: all, or those that CUDA_VISIBLE_DEVICES names by number or
    UUID, up to the first that does not exist.

    A MIG instance counts as a partitioned GPU: its name does not say which one.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(gpus.values())
    found = []
    for part in (part.strip() for part in chosen.split(",")):
        if part.isdigit() and int(part) < len(gpus):
            found.append(list(gpus.values())[int(part)])
        elif part and (named := [gpu for uuid, gpu in gpus.items() if _names(part, uuid, gpu)]):
            found.append(named[0])
        else:
            break
    return found


def _names(part: str, uuid: str, gpu: _Splittable) -> bool:
    return gpu.mig if part.startswith("MIG-") else uuid.startswith(part)


def text_of(value: bytes | str) -> str:
    """Text; older versions of the library return bytes."""
    return value.decode() if isinstance(value, bytes) else value
