"""GPUs as data: sizes, speeds and the sources of the figures; and the CPU of this machine.

Rates are of dense matrix products. A link's rate is in one direction, half of the data sheet's.
"""

from dataclasses import dataclass, replace

from pipeline.core.hardware import GIB, Gpu, Machine


@dataclass(frozen=True)
class Accelerator:
    """The device of a training process.

    memory: bytes that CUDA shows. bf16, fp8: FLOP/s of the data sheet; fp8 None where there is
    none, bf16 None where the card is not known. link: bytes/s to another GPU of the same node.
    """

    name: str
    memory: int
    bf16: float | None
    fp8: float | None
    link: float
    source: str
    gpu: bool = True


NVLINK3, NVLINK4, NVLINK5, PCIE4 = 300e9, 450e9, 900e9, 32e9
# Between nodes, a GPU: one 400 Gb/s adapter each, as in NVIDIA's DGX H100 and H200 reference
# architecture. An assumption: it is the cluster's, not the card's.
NETWORK = 50e9
# Share of a link's rate that collectives reach: 75 to 85 % on NVLink in NCCL's tests.
LINK_SHARE = 0.8

KNOWN = {
    "a100": Accelerator(
        "NVIDIA A100 80GB", 80 * GIB, 312e12, None, NVLINK3, "NVIDIA A100 data sheet (2021)"
    ),
    "h100": Accelerator(
        "NVIDIA H100 80GB HBM3", 81_559 * 2**20, 989.4e12, 1978.9e12, NVLINK4,
        "NVIDIA H100 data sheet (2023), SXM5",
    ),
    "h200": Accelerator(
        "NVIDIA H200", 143_771 * 2**20, 989.4e12, 1978.9e12, NVLINK4,
        "NVIDIA H200 data sheet (2024), SXM5",
    ),
    "l40s": Accelerator(
        "NVIDIA L40S", 46_068 * 2**20, 362.05e12, 733e12, PCIE4, "NVIDIA L40S data sheet (2023)"
    ),
    "b200": Accelerator(
        "NVIDIA B200", 183_359 * 2**20, 2250e12, 4500e12, NVLINK5,
        "NVIDIA HGX B200 data sheet (2025)",
    ),
}  # fmt: skip


# In the names of cards that share one with an SXM card of the list.
IN_PCIE_SLOTS = ("PCIE", "NVL")


def of_machine(machine: Machine) -> Accelerator:
    """The machine's GPU, the smallest if they differ, or its CPU."""
    if machine.gpus:
        return of_gpu(min(machine.gpus, key=lambda gpu: gpu.memory_bytes))
    return Accelerator(
        f"{machine.cpu}, {machine.cores:g} cores", machine.memory_bytes, CPU_CORE * machine.cores,
        None, MEMORY_COPY, "measured: the demo's fine-tuning on two cores", gpu=False,
    )  # fmt: skip


def of_gpu(gpu: Gpu) -> Accelerator:
    """A GPU by its name; one that is not in the list has a size and no rate.

    Nor has an instance of a split card, nor the form of one that goes into a PCIe slot: both are
    slower than the card of the list, and without its NVLink.
    """
    name = gpu.name.upper()
    listed = next((known for key, known in KNOWN.items() if key.upper() in name), None)
    other_form = any(form in name for form in IN_PCIE_SLOTS)
    if listed and not gpu.mig and not other_form:
        return replace(listed, name=gpu.name, memory=gpu.memory_bytes)
    source = "not in the planner's list"
    if listed:
        source += f": a part of {listed.name}" if gpu.mig else f", which has {listed.name}"
    fp8 = 0.0 if has_fp8(gpu) else None
    return Accelerator(gpu.name, gpu.memory_bytes, None, fp8, PCIE4, source)


def has_fp8(gpu: Gpu) -> bool:
    """Ada, Hopper and later multiply 8-bit floats (CUDA programming guide, compute capability)."""
    return tuple(int(part) for part in gpu.compute_capability.split(".")) >= (8, 9)


# FLOP/s a core that the demo's fine-tuning reaches in float32, Python included.
CPU_CORE = 31e9
# Bytes/s between two processes of one host over gloo.
MEMORY_COPY = 1e9
