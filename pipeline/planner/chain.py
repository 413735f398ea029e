"""What each stage takes: disk, memory and time.

Bytes per weight follow from the formats. Seconds are those of one process per stage on one H200's
host with 8 B parameters (bench/results/gpu_hops.json). Beyond the start they grow with the model's
bytes. On a CPU only training is predicted.
"""

from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.engines.registry import ENGINES, behind, named
from pipeline.models.architecture import Shape
from pipeline.optimization.formats import FORMATS, exported_forms
from pipeline.planner.accelerators import Accelerator
from pipeline.planner.memory import CPU_PROCESS
from pipeline.planner.workload import Workload, held_parameters, linear_parameters, saved_tables

SMALL = 0.5e6  # tokenizers, reports, plots

# Bytes per parameter that a stage holds at once, at most. On a GPU import opens what it wrote in
# float32, maybe before Python has freed the model that it wrote, and merge compares two models in
# float32. The other stages load bfloat16. On a CPU everything is float32.
HELD_ON_GPU = {"import": 6, "merge": 8, "quantize": 2, "evaluate": 2, "export": 2}
HELD_ON_CPU = {"import": 8, "merge": 8, "quantize": 4, "evaluate": 4, "export": 4}
USABLE = 0.92  # share of a GPU; the rest is CUDA's context and the forward pass
# Seconds on one H200's host: until a stage's work begins, and in proportion to 16.06 GB.
START = {"import": 18.0, "merge": 16.0, "quantize": 9.0, "export": 10.0}
WORK = {"import": 33.0, "merge": 25.0, "quantize": 27.0, "export": 27.0}
MEASURED_BYTES = 16.06e9


@dataclass(frozen=True)
class Stage:
    """One stage. disk: bytes of its artifact. held: bytes of memory. seconds: None if not known.

    on_gpu: whether one GPU holds it; otherwise it takes the host's memory.
    """

    name: str
    disk: float
    on_gpu: bool
    held: float
    seconds: float | None


def stages(config: Config, work: Workload, on: Accelerator) -> list[Stage]:
    """The stages from import to build; memory and time of finetune are in the plan itself.

    Every stage but finetune computes on one GPU, or on the CPU if a GPU is too small.
    `engine=auto` counts as the engine that this plan's device would take.
    """
    shape = work.shape
    written = 2 if work.gpu else 4  # bytes per weight of a checkpoint (training/nemo/models.py)
    weights = written * shape.parameters
    tuned = (
        weights
        if config.finetune.method == "sft"
        else written * (held_parameters(work) + saved_tables(work))
    )
    merged = (4 if config.model.dtype == "float32" else 2) * shape.parameters
    if config.finetune.method != "sft":
        merged += 4 * (held_parameters(work) + saved_tables(work))
    # The others' weights are the merged model's, linked and not written again.
    formats = {
        name
        for name in (config.quantize.format, *config.quantize.compare)
        if not FORMATS[name].keeps_weights
    }
    exported = FORMATS[config.quantize.format]
    disk = {
        "import": weights,
        "finetune": tuned,
        "merge": merged,
        "quantize": len(formats) * written * shape.parameters,
        "evaluate": 0.0,
        # qnemo, with an output layer of its own, and hf.
        "export": len(exported_forms(exported.name, shape.no_qnemo)) * packed(shape, exported.name)
        + 2 * shape.tied * shape.vocab * shape.hidden,
        "build": engine(config, work),
    }
    found = []
    for name, size in disk.items():
        held = float(HELD_ON_GPU.get(name, 0) * shape.parameters)
        on_gpu = work.gpu and held <= USABLE * on.memory
        if not on_gpu:
            held = HELD_ON_CPU.get(name, 0) * shape.parameters
            held += CPU_PROCESS if held else 0
        found.append(Stage(name, size + SMALL, on_gpu, held, _seconds(name, work, on_gpu)))
    return found


def _seconds(name: str, work: Workload, on_gpu: bool) -> float | None:
    if not on_gpu or name not in WORK:
        return None
    return START[name] + WORK[name] * 2 * work.shape.parameters / MEASURED_BYTES


def packed(shape: Shape, format: str) -> float:
    """Bytes of an exported checkpoint. Embedding, output layer and norms stay in 16 bits."""
    linear = linear_parameters(shape)
    return FORMATS[format].bytes_per_weight * linear + 2 * (shape.parameters - linear)


def engine(config: Config, work: Workload) -> float:
    """Bytes of a built engine."""
    device = "gpu" if work.gpu else "cpu"
    settings = behind(config.engine)
    record = named(settings.name)
    record = record or next(r for r in ENGINES.values() if device in r.devices)
    if record.disk == "linked":
        return 0.0
    if record.disk == "packed":
        return packed(work.shape, config.quantize.format)
    return record.disk[settings.precision] * work.shape.parameters


def checkpoint_bytes(work: Workload) -> float:
    """Bytes of a checkpoint to resume from: trained weights and the optimizer's state."""
    trained = held_parameters(work) + saved_tables(work)
    return trained * (2 + 12) if work.gpu else trained * (4 + 8)


def most_at_once(chain: list[Stage], work: Workload) -> float:
    """Bytes of every artifact and, during training, of two checkpoints: the old one is removed
    when the new one is complete. finetune.keep=best keeps weights in the same way."""
    best = 2 * sum(stage.disk for stage in chain if stage.name == "finetune")
    kept = best if work.settings.keep == "best" else 0.0
    return sum(stage.disk for stage in chain) + 2 * checkpoint_bytes(work) + kept
