"""Output for people: one console and one style of progress bar. Knows nothing about stages."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@functools.cache
def get_console() -> "Console":
    """The console that writes to standard error, so that standard output stays for data."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def progress(*fields: str) -> Iterator["Progress"]:
    """A progress bar with time left. `fields` are names of task fields to show behind it.

    >>> with progress("loss") as bar:
    ...     task = bar.add_task("train", total=3, loss="")
    ...     bar.update(task, advance=1, loss="2.31")
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = [TextColumn(f"{name} {{task.fields[{name}]}}") for name in fields]
    columns = [TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), *shown]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=get_console(), transient=False) as bar:
        yield bar


def natural(text: str) -> list[tuple[str, int]]:
    """Sort key by which at_4 comes before at_16."""
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D+)(\d*)", text)]
