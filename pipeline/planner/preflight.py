"""Whether this machine has what a training takes: checked before it starts.

An error names what is missing, where, and the setting that would fit; sizes are the planner's.
Nothing here changes what a run computes.
"""

from pipeline.config.finetune import FinetuneConfig
from pipeline.core import hardware
from pipeline.core.errors import Busy, ConfigError, MissingRuntime, ResourceError
from pipeline.core.gpu_use import GpuUse, gpu_use
from pipeline.core.hardware import GIB, Machine
from pipeline.models.architecture import Shape
from pipeline.planner.accelerators import has_fp8
from pipeline.planner.advice import what_fits
from pipeline.planner.memory import peak
from pipeline.planner.workload import Rows, Workload
from pipeline.training.job import Job

# Estimates are within a tenth of what was measured, so a run that is refused could not have run.
CERTAIN = 1.1


def check_machine(job: Job, shape: Shape, *, longest: int) -> None:
    """Refuse a job that this machine cannot run.

    longest: tokens of the longest training row.

    Raises:
        ConfigError: more processes than GPUs. MissingRuntime: FP8 on a GPU without it.
        ResourceError: more memory than there is. Busy: others hold memory that the job needs.
    """
    machine = hardware.inspect_machine()
    work = _work(job, shape, longest, gpu=bool(machine.gpus))
    need = peak(work).total
    check_precision(job.settings, machine)
    if not machine.gpus:
        here = job.parallel.processes // job.nodes
        _check_size(work, need, machine.memory_bytes / here, "each process", "this machine")
        return
    _check_gpus(job, machine)
    smallest = min(machine.gpus, key=lambda gpu: gpu.memory_bytes)
    _check_size(work, need, smallest.memory_bytes, "each GPU", smallest.name)
    for use in gpu_use()[: job.parallel.processes // job.nodes]:
        _check_free(use, need)


def check_precision(settings: FinetuneConfig, machine: Machine) -> None:
    """Refuse FP8 on a machine without it: a CPU would train in float32 and record FP8.

    Raises:
        MissingRuntime: a GPU has no FP8, or there is no GPU.
    """
    if settings.precision != "fp8":
        return
    if not machine.gpus:
        raise MissingRuntime(no_fp8("this machine, which has no GPU,"))
    for gpu in machine.gpus[: settings.parallel.processes]:
        if not has_fp8(gpu):
            raise MissingRuntime(
                no_fp8(f"{gpu.name} (compute capability {gpu.compute_capability})")
            )


def no_fp8(device: str) -> str:
    """Why a device cannot train in FP8, and what to do."""
    return (
        f"finetune.precision=fp8: {device} has no FP8, which GPUs of compute capability 8.9 and "
        "later have: set finetune.precision=bf16"
    )


def planned_memory(job: Job, shape: Shape, *, longest: int) -> float:
    """Bytes of tensors that the planner expects at the peak of a job on a GPU."""
    return peak(_work(job, shape, longest, gpu=True)).tensors


def _work(job: Job, shape: Shape, longest: int, *, gpu: bool) -> Workload:
    rows = Rows(None, longest, longest, 0, known=True)
    return Workload(shape, job.settings, rows, gpu=gpu)


def _check_gpus(job: Job, machine: Machine) -> None:
    parallel, gpus = job.parallel, len(machine.gpus)
    here = parallel.processes // job.nodes
    if here > gpus:
        tensor = f" (tensor={parallel.tensor})" if parallel.tensor > gpus else ""
        raise ConfigError(
            f"finetune.parallel.processes={parallel.processes}{tensor} needs {here} GPUs a machine "
            f"and this one has {gpus}: lower it to {gpus * job.nodes}, spread it with "
            "launcher.nodes=…, or make more visible with CUDA_VISIBLE_DEVICES"
        )


def _check_size(work: Workload, need: float, have: float, each: str, where: str) -> None:
    """have: bytes; 0 if the system does not report them."""
    if have and need > CERTAIN * have:
        raise ResourceError(
            f"training takes about {need / GIB:.1f} GiB of {each} and {where} has "
            f"{have / GIB:.1f}: {_what_to_do(work, have)}"
        )


def _check_free(use: GpuUse, need: float) -> None:
    """Refuse a GPU on which other processes hold so much memory that the job does not fit."""
    if not use.holders or need <= CERTAIN * use.free:
        return
    others = "; ".join(map(str, use.holders[:3]))
    raise Busy(
        f"GPU {use.index} ({use.name}) has {use.free / GIB:.1f} of {use.total / GIB:.1f} GiB free "
        f"and training takes about {need / GIB:.1f}: {others}. Wait for it, end it, or choose "
        "other GPUs with CUDA_VISIBLE_DEVICES"
    )


def less_memory(job: Job, shape: Shape, *, longest: int) -> str:
    """Which settings make a job smaller, for the message when memory runs out during training.

    If the estimate says that the job fits, the answer is a smaller job all the same.
    """
    gpus = hardware.inspect_machine().gpus
    work = _work(job, shape, longest, gpu=bool(gpus))
    less = peak(work).total - 1
    return _what_to_do(work, min([less, *(float(gpu.memory_bytes) for gpu in gpus)]))


def _what_to_do(work: Workload, memory: float) -> str:
    ways = what_fits(work, memory)
    if ways:
        return f"set {' or '.join(ways)}"
    return "take more or larger GPUs, a smaller model, or shorter rows (prepare.max_length)"
