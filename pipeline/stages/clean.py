"""Free disk space: show what is not needed any more, and remove it when you agree.

    python -m pipeline stage=clean
    python -m pipeline stage=clean clean.confirm=true clean.older_than=30

Present artifacts are kept, and so is what they and registered versions were made from. It refuses
while a run is going on.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from pipeline.config.schema import Config
from pipeline.core.artifact import SWEEPS, main_folder
from pipeline.core.console import confirm, get_console
from pipeline.orchestration.audit.cleaning import TITLES, Item, find, freed, remove

MOST_SHOWN = 30  # things in the list


def run(config: Config) -> None:
    """Print what is there to standard output, ask, and remove what clean.what names.

    Raises:
        Busy: a run is going on. ConfigError: nobody can be asked. ResourceError: something cannot
            be removed.
    """
    from pipeline.orchestration.audit.lineage import read_lineage
    from pipeline.orchestration.audit.versions import versions_of
    from pipeline.orchestration.runner import GRAPH_LOCK, hold

    folder = main_folder(config.artifacts)
    versions, note = versions_of(config)
    with ExitStack() as held:
        if folder.is_dir():
            for lock in (GRAPH_LOCK, ".lock"):
                held.enter_context(hold(folder, lock))
            for sweep in sorted((folder / SWEEPS).glob("*")):
                held.enter_context(hold(sweep))
        lineage = read_lineage(config.artifacts, versions)
        found = find(config, lineage, registry_answers=not note)
        chosen = [item for item in found if not item.keep]
        _show(found, chosen)
        if note:
            get_console().print(note, soft_wrap=True, markup=False)
        if not chosen:
            get_console().print("nothing to remove")
            return
        size = f"{freed(chosen) / 2**20:,.1f} MiB"
        question = f"{len(chosen)} things, which take {size}, will be removed. Remove them?"
        if confirm(question, given=config.clean.confirm, setting="clean.confirm"):
            remove(chosen)
            get_console().print(f"✓ removed {len(chosen)} things: {size} are free")
        else:
            get_console().print("nothing was removed")


def _show(found: Sequence[Item], chosen: Sequence[Item]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from pipeline.orchestration.audit.lineage_words import wide_console

    console = wide_console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("clean.what", "", "there", "MiB", "to remove", "MiB"):
        right = heading in ("there", "MiB", "to remove")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for kind, title in TITLES.items():
        there = [item for item in found if item.kind == kind]
        going = [item for item in chosen if item.kind == kind]
        table.add_row(kind, title, str(len(there)), _mib(there), str(len(going)), _mib(going))
    console.print(table)
    for heading, items in (
        ("to remove", chosen),
        ("kept", [item for item in found if item.keep]),
    ):
        if not items:
            continue
        console.print(f"\n{heading}", style="bold")
        parts = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for place in range(3):
            parts.add_column(justify="right" if place == 1 else "left", no_wrap=place < 2)
        largest = sorted(items, key=lambda item: -item.bytes)
        for item in largest[:MOST_SHOWN]:
            why = ": ".join(filter(None, (item.what, item.keep)))
            parts.add_row(f"  {escape(str(item.path))}", _mib([item]), escape(why))
        console.print(parts)
        if len(items) > MOST_SHOWN:
            console.print(f"  and {len(items) - MOST_SHOWN} smaller ones")


def _mib(items: Sequence[Item]) -> str:
    return f"{sum(item.bytes for item in items) / 2**20:,.1f}"
