"""Output for people: one console and one style of progress bar. Knows nothing about stages."""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from pipeline.core.secrets import mask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@functools.cache
def get_console() -> "Console":
    """The console that writes to standard error, so that standard output stays for data.

    Secrets are masked, and a standard error that cannot be written is ignored: a training must not
    fail because nobody reads of its progress.
    """
    from rich.console import Console

    return Console(file=cast(IO[str], Lenient("stderr", mask)), highlight=False)


class Lenient:
    """A standard stream, as sys has it at the time of each call. It raises nothing.

    failed: the first error of a write; what follows is discarded.
    """

    def __init__(self, name: str, change: Callable[[str], str] = str, stream: Any = None) -> None:
        self._name, self._change, self._fixed = name, change, stream
        self.failed: OSError | None = None

    @property
    def _stream(self) -> Any:
        return self._fixed or getattr(sys, self._name)

    def write(self, text: str) -> int:
        self._try("write", self._change(text))
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return bool(self._stream) and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method: str, *arguments: str) -> None:
        if not self._stream or self.failed:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            self.failed = error


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
