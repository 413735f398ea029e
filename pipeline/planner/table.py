"""A plan as tables for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.core.console import output_console
from pipeline.core.hardware import GIB
from pipeline.planner.plan import Plan
from pipeline.planner.workload import Workload, trained_parameters

BAR = 40
PIECES = {
    "weights": ("weights", "blue"),
    "fp8_copies": ("8-bit copies of the weights", "bright_blue"),
    "gradients": ("gradients", "magenta"),
    "optimizer": ("optimizer", "bright_magenta"),
    "activations": ("activations", "green"),
    "logits": ("logits and their gradient", "yellow"),
    "workspace": ("workspaces", "white"),
    "overhead": ("CUDA, NCCL, fragments", "bright_black"),
}


def show(plan: Plan) -> None:
    """Print the plan to standard output. The caller reports its problems as an error."""
    console = output_console()
    console.print(Group(_heading(plan), _memory(plan), *_time(plan), _stages(plan)))
    for note in plan.notes:
        console.print(f"[dim]· {escape(note)}[/]", soft_wrap=True)
    if not plan.problems:
        console.print("[green]✓[/] it fits" + ("" if plan.here else ", on that hardware"))


def _heading(plan: Plan) -> Text:
    work = plan.work
    text = Text()
    text.append(plan.model, "bold")
    text.append(f", {count(work.shape.parameters)} parameters: {_method(work)} on ")
    several = f"{work.parallel.processes} × " if work.parallel.processes > 1 else ""
    text.append(f"{several}{plan.device.name}", "bold")
    sizes = {
        "tensor": work.parallel.tensor,
        "pipeline": work.parallel.pipeline,
        "context": work.parallel.context,
        "data": work.data,
    }
    shared = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    rows = f"packs of {work.settings.pack_length:,}" if work.settings.pack_length else _rows(work)
    text.append(f"\n{shared + ' parallel; ' if shared else ''}{rows}; ")
    text.append(f"{work.settings.global_batch_size} rows a step in {_microbatches(work)}")
    text.append(f"\n{plan.length}" if plan.length else "")
    return text


def _microbatches(work: Workload) -> str:
    each = " a rank" if work.data > 1 else ""
    return (
        "one micro-batch" + each
        if work.microbatches == 1
        else (f"{work.microbatches} micro-batches{each}")
    )


def _method(work: Workload) -> str:
    precision = work.settings.precision if work.gpu else "float32"
    trained = count(trained_parameters(work))
    if work.settings.method == "sft":
        return f"all of them trained, {precision}"
    name = {"lora": "LoRA", "dora": "DoRA"}[work.settings.method]
    return f"{name} of rank {work.settings.adapter.rank} ({trained} trained), {precision}"


def _rows(work: Workload) -> str:
    rows = "row" if work.settings.micro_batch_size == 1 else "rows"
    return f"{work.settings.micro_batch_size} {rows} of {work.rows.longest:,} tokens a micro-batch"


def _memory(plan: Plan) -> Table:
    work = plan.work
    have = plan.device.memory if work.gpu else plan.device.memory / work.parallel.processes
    table = _table(f"Memory of each {'GPU' if work.gpu else 'process'}", "", "GiB", "")
    table.columns[1].justify = "right"
    for name, (label, colour) in PIECES.items():
        if name == "overhead" and not work.gpu:
            label = "Python and its libraries"
        size = getattr(plan.memory, name)
        if size >= 0.005 * GIB:
            table.add_row(label, f"{size / GIB:.2f}", _bar(size / have, colour))
    total = plan.memory.total
    fits = "green" if total <= have else "red"
    share = f"of {have / GIB:.1f} GiB, {total / have:.0%}"
    table.add_section()
    table.add_row("at the peak", f"[bold {fits}]{total / GIB:.2f}[/]", f"[{fits}]{share}[/]")
    return table


def _bar(share: float, colour: str) -> str:
    length = min(BAR, round(share * BAR))
    return f"[{colour}]{'█' * length or '▏'}[/]"


def _time(plan: Plan) -> list[Table]:
    step, duration = plan.step, plan.duration
    if step is None or duration is None:
        return []
    table = _table("Time of fine-tuning", "", "", "")
    table.columns[1].justify = "right"
    speed = step.tokens / step.seconds
    processes = plan.work.parallel.processes
    each = f", {speed / processes:,.0f} a GPU" if processes > 1 else ""
    table.add_row("a step", spell(step.seconds), f"{step.tokens:,.0f} tokens, {speed:,.0f}/s{each}")
    for name, seconds in (
        ("tensor parallel", step.tensor),
        ("context parallel", step.context),
        ("pipeline bubble", step.pipeline),
        ("gradient exchange", step.data),
    ):
        if seconds >= 0.005 * step.seconds:
            table.add_row(f"  {name}", spell(seconds), f"{seconds / step.seconds:.0%}")
    table.add_row("until the first step", spell(duration.start), "imports, reading the weights")
    table.add_row(f"{plan.steps:,} steps", spell(duration.steps), "")
    if duration.reference > 0:
        table.add_row("reference", spell(duration.reference), "")
    if duration.validation > 0:
        table.add_row("validation", spell(duration.validation), "")
    if duration.checkpoints >= 0.5:
        table.add_row("checkpoints", spell(duration.checkpoints), "")
    table.add_section()
    table.add_row("total", f"[bold]{spell(duration.total)}[/]", "")
    return [table]


def _stages(plan: Plan) -> Table:
    table = _table("The stages", "stage", "disk", "memory", "of", "time")
    for place in (1, 2, 4):
        table.columns[place].justify = "right"
    for stage in plan.chain:
        held, seconds, gpus = stage.held, stage.seconds, 1
        on_gpu = stage.on_gpu
        if stage.name == "finetune":
            held, gpus, on_gpu = plan.memory.total, plan.work.parallel.processes, plan.work.gpu
            seconds = plan.duration.total if plan.duration else None
        where = ("each GPU" if gpus > 1 else "one GPU") if on_gpu else "the host"
        table.add_row(
            stage.name,
            size(stage.disk),
            f"{held / GIB:,.1f} GiB" if held else "",
            where if held else "",
            spell(seconds) if seconds else "",
        )
    free = "" if plan.free_disk is None else f"of {size(plan.free_disk)} free"
    table.add_section()
    table.add_row("peak", f"[bold]{size(plan.disk)}[/]", free, "", "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.show_header = any(columns[:1])
    return table


def count(number: float) -> str:
    """8.03 B, 35.7 M."""
    for unit, size_ in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size_:
            return f"{number / size_:.3g} {unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes as 16.1 GB or 350 MB."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def spell(seconds: float) -> str:
    """2.11 s, 6 min, 3.2 h, 4.1 days."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
