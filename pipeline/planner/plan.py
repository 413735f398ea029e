"""The plan of a run: its training and its stages on a device, and everything that does not fit."""

from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Config
from pipeline.core import hardware
from pipeline.core.hardware import GIB
from pipeline.planner import chain, speed
from pipeline.planner.accelerators import KNOWN, Accelerator, of_machine
from pipeline.planner.advice import what_fits
from pipeline.planner.layouts import quickest
from pipeline.planner.memory import Memory, peak
from pipeline.planner.preflight import no_fp8
from pipeline.planner.refusals import check_run
from pipeline.planner.rows import rows_of
from pipeline.planner.workload import Workload
from pipeline.training.length import FEW, MANY, Length, ends_first, in_words, steps_of

WORTH = 0.1  # share of a step that another layout must save to be mentioned
TIGHT = 0.1  # share of memory; predictions are within it of what was measured


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    here: whether it is planned for this machine. node: devices of one machine. steps: of
    fine-tuning; None: epochs decide, and the rows are not known yet. length: the same in words.
    disk, free_disk: bytes; the latter None for another machine. problems: why the run is not
    possible, each with what to do; empty if it is. notes: remarks on the figures.
    """

    model: str
    work: Workload
    device: Accelerator
    here: bool
    node: int
    memory: Memory
    step: speed.Step | None
    duration: speed.Duration | None
    steps: int | None
    length: str
    chain: tuple[chain.Stage, ...]
    disk: float
    free_disk: float | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def epochs(self) -> float | None:
        """Passes over the training rows, where both are known."""
        length = _length_of(self.work, self.steps)
        return length.epochs if length else None

    def to_json(self) -> dict[str, Any]:
        """Bytes, seconds and tokens; ready for JSON."""
        step, duration, processes = self.step, self.duration, self.work.parallel.processes
        return {
            "model": {"name": self.model, "parameters": self.work.shape.parameters},
            "device": {"name": self.device.name, "count": processes, "source":
                       self.device.source, "memory": self.device.memory, "a_node": self.node},
            "memory": {**vars(self.memory), "tensors": self.memory.tensors,
                       "total": self.memory.total},
            "step": None if step is None else {
                **vars(step), "seconds": step.seconds,
                "tokens_per_second_a_device": step.tokens / step.seconds / processes,
            },
            "length": {"steps": self.steps, "epochs": self.epochs, "rows": self.work.rows.count},
            "finetune": None if duration is None else {**vars(duration), "total": duration.total},
            "stages": {stage.name: vars(stage) for stage in self.chain},
            "disk": {"needed": self.disk, "free": self.free_disk},
            "fits": not self.problems,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }  # fmt: skip


def make_plan(config: Config) -> Plan:
    """The plan of a configuration.

    Raises:
        ConfigError, MissingRuntime: what a stage would refuse (planner/refusals.py).
        DataError: no model folder with a config.json, or one that cannot be imported.
    """
    name = config.plan.gpu
    shape = check_run(config, here=name is None)
    machine = hardware.inspect_machine()
    device = KNOWN[name] if name else of_machine(machine)
    rows = rows_of(config)
    work = Workload(shape, config.finetune, rows, gpu=device.gpu)
    node = config.plan.gpus_per_node if name else max(1, len(machine.gpus))
    memory = peak(work)
    step = speed.step(work, device, node=node)
    duration = None
    steps = steps_of(config.finetune, rows.count)
    if step and steps:
        duration = speed.run(
            work,
            step,
            steps=steps,
            validate_every=config.finetune.validate_every,
            checkpoint_every=config.finetune.checkpoint_every,
            checkpoint_bytes=chain.checkpoint_bytes(work),
        )
    stages = tuple(chain.stages(config, work, device))
    disk = chain.most_at_once(list(stages), work)
    here = name is None
    free = float(hardware.free_disk_bytes(config.artifacts)) if here else None
    problems = [
        *_devices(config, work, device, here, len(machine.gpus)),
        *_memory(work, device, memory),
        *_disk(config, disk, free),
    ]
    notes = [*_length_notes(work, steps), *_notes(work, device, memory, step, stages, node)]
    return Plan(
        model=config.model.name, work=work, device=device, here=here, node=node, memory=memory,
        step=step, duration=duration, steps=steps, length=_length(work, steps), chain=stages,
        disk=disk, free_disk=free, problems=tuple(problems), notes=tuple(notes),
    )  # fmt: skip


def _length_of(work: Workload, steps: int | None) -> Length | None:
    if steps is None or not work.rows.count:
        return None
    return Length(steps, work.settings.global_batch_size, work.rows.count)


def _length(work: Workload, steps: int | None) -> str:
    """How long training is, in words; empty as long as only the steps are known."""
    length = _length_of(work, steps)
    if length:
        return f"{length}{ends_first(work.settings, length.rows)}"
    if steps or work.settings.epochs is None:
        return ""
    epochs = in_words(work.settings.epochs)
    return f"{epochs} {'epoch' if epochs == '1' else 'epochs'}"


def _length_notes(work: Workload, steps: int | None) -> list[str]:
    length = _length_of(work, steps)
    if steps is None:
        return [
            "finetune.epochs decides the steps, so the time of training is known after "
            "stage=prepare"
        ]
    if length and length.epochs > MANY:
        few = work.settings.but(max_steps=None, epochs=FEW)
        return [
            f"training sees each row {in_words(length.epochs)} times, and published recipes one to "
            f"three: a model may learn so few rows by heart; finetune.epochs={FEW} is "
            f"{steps_of(few, length.rows):,} steps"
        ]
    return []


def _devices(config: Config, work: Workload, on: Accelerator, here: bool, gpus: int) -> list[str]:
    found = []
    processes = work.parallel.processes
    if here and gpus and processes > gpus * config.launcher.nodes:
        found.append(
            f"finetune.parallel.processes={processes} is over this machine's {gpus} GPUs: "
            "lower it, or plan for other hardware with plan.gpu=…"
        )
    if work.fp8 and on.fp8 is None:
        found.append(no_fp8(on.name))
    return found


def _memory(work: Workload, on: Accelerator, memory: Memory) -> list[str]:
    # Processes on a CPU share the machine's memory; GPUs have one each.
    have = on.memory if work.gpu else on.memory / work.parallel.processes
    if memory.total <= have:
        return []
    ways = what_fits(work, have)
    mend = f"set {' or '.join(ways)}" if ways else "take more or larger GPUs, or a smaller model"
    return [
        f"training takes {memory.total / GIB:.1f} GiB a process and {on.name} has "
        f"{have / GIB:.1f}: {mend}"
    ]


def _disk(config: Config, needed: float, free: float | None) -> list[str]:
    if free is None or needed <= free:
        return []
    fewer = "quantize.compare=[] or " if config.quantize.compare else ""
    return [
        f"the artifacts take {needed / 1e9:.1f} GB and {config.artifacts} has {free / 1e9:.1f} GB "
        f"free: set {fewer}artifacts=… on a larger disk"
    ]


def _quicker(work: Workload, on: Accelerator, step: speed.Step | None, node: int) -> list[str]:
    """Another layout of the same GPUs, if one is predicted to be clearly faster."""
    best = quickest(work, on, node=node)
    if step is None or best is None or best[1] > (1 - WORTH) * step.seconds:
        return []
    sizes = best[0].parallel.model_dump(exclude={"processes"})
    settings = " ".join(f"finetune.parallel.{name}={size}" for name, size in sizes.items())
    return [f"{settings} would take {1 - best[1] / step.seconds:.0%} less time a step"]


def _notes(
    work: Workload,
    on: Accelerator,
    memory: Memory,
    step: speed.Step | None,
    stages: tuple[chain.Stage, ...],
    node: int,
) -> list[str]:
    notes = []
    have = on.memory if work.gpu else on.memory / work.parallel.processes
    if 1 - TIGHT < memory.total / have <= 1:
        notes.append("memory fits by less than the error of the estimate: try a few steps first")
    if not work.rows.known:
        notes.append(
            f"rows are assumed to be {work.rows.longest} tokens long (prepare.max_length); after "
            "stage=prepare their real lengths are used"
        )
    if step is None:
        notes.append(f"the speed of {on.name} is not known, so its time is not predicted")
    elif step.host_bound:
        notes.append("a step waits for the host, not the GPU: a larger micro-batch is faster")
    if step:
        notes.append(speed.rate_in_words(work, on))
    if work.gpu and work.parallel.processes > 1:
        notes.append("several GPUs: calculated from traffic and link rates, not measured")
        notes += _quicker(work, on, step, node)
    large = [stage for stage in stages if work.gpu and not stage.on_gpu]
    if large:
        names = ", ".join(stage.name for stage in large)
        most = max(stage.held for stage in large) / GIB
        notes.append(
            f"{names} do not fit one {on.name}: run each with CUDA_VISIBLE_DEVICES= before "
            f"the command, on a host with {most:,.0f} GiB of memory"
        )
    return notes
