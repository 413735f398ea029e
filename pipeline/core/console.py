"""Output for people: one console and one style of progress bar. Knows nothing about stages.

Texts from data, files and models reach the terminal only through `printable`: a row with escape
sequences could otherwise recolour it, move the cursor, or write into its title or clipboard.
"""

import functools
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.progress import Progress
    from rich.segment import Segment

# Control characters but tab and line feed, marks that reverse the direction of writing, and halves
# of surrogate pairs, which no terminal can show.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""The text with what a terminal would act on written as an escape, such as \x1b."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def report(message: str) -> None:
    """Print one line about an error to standard error."""
    print(f"pipeline: {printable(message)}", file=sys.stderr)


@functools.cache
def get_console() -> "Console":
    """The console that writes to standard error, so that standard output stays for data.

    Whatever it prints is `printable`; only its own styles and cursor movements are escapes.
    """
    from rich.console import Console
    from rich.segment import Segment

    class CleanConsole(Console):
        def render(
            self, renderable: Any, options: "ConsoleOptions | None" = None
        ) -> "Iterable[Segment]":
            for segment in super().render(renderable, options):
                if segment.control or not _UNPRINTABLE.search(segment.text):
                    yield segment
                else:
                    yield Segment(printable(segment.text), segment.style)

    return CleanConsole(stderr=True, highlight=False)


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
