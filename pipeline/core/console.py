"""Output for people: two consoles and one style of progress bar. Knows nothing about stages.

Texts from data, files and models reach the terminal only through `printable`: a row with escape
sequences could otherwise recolour it, move the cursor, or write into its title or clipboard.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from pipeline.core.errors import ConfigError
from pipeline.core.secrets import mask

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.progress import Progress
    from rich.segment import Segment

# Control characters but tab and line feed, marks that reverse the direction of writing, and halves
# of surrogate pairs, which no terminal can show.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

_LONG_WORD = re.compile(r"\S{400,}")


def printable(text: str) -> str:
    r"""The text with what a terminal would act on written as an escape, such as \x1b."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The text printable and on one line: what a file's name or a library's message holds may be
    several."""
    return printable(" ".join(line.strip() for line in text.split("\n") if line.strip()))


def report(message: str) -> None:
    """Print one line about an error to standard error; the exit code remains if that fails.

    What somebody else wrote may stand in it at any length: words beyond any path are shortened.
    """
    write_error(f"pipeline: {_LONG_WORD.sub(_shortened, one_line(message))}\n")


def _shortened(word: re.Match[str]) -> str:
    return f"{word[0][:100]}…{word[0][-40:]} ({len(word[0]):,} characters)"


def write_error(text: str) -> None:
    """Write to standard error without secrets and escape sequences, if it can be written."""
    error = Lenient("stderr")
    error.write(printable(mask(text)))
    error.flush()


@functools.cache
def get_console() -> "Console":
    """The console that writes to standard error, so that standard output stays for data.

    Whatever it prints is `printable`; only its own styles and cursor movements are escapes. Secrets
    are masked, and a standard error that cannot be written is ignored: a training must not fail
    because nobody reads of its progress.
    """
    return _clean_console("stderr")


def output_console() -> "Console":
    """The same for standard output: for stages whose result is what they print."""
    return _clean_console("stdout")


def _clean_console(stream: str) -> "Console":
    from rich.console import Console
    from rich.segment import Segment

    class CleanConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            # Here, before a secret can be wrapped, as well as where it is written.
            super().print(*(mask(o) if isinstance(o, str) else o for o in objects), **options)

        def render(
            self, renderable: Any, options: "ConsoleOptions | None" = None
        ) -> "Iterable[Segment]":
            for segment in super().render(renderable, options):
                if segment.control or not _UNPRINTABLE.search(segment.text):
                    yield segment
                else:
                    yield Segment(printable(segment.text), segment.style)

    return CleanConsole(file=cast(IO[str], Lenient(stream, mask)), highlight=False)


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


def confirm(question: str, *, given: bool, setting: str) -> bool:
    """Whether to do what cannot be undone: a setting says so, or the person at the terminal.

    Raises:
        ConfigError: nobody can be asked.
    """
    if given:
        return True
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        raise ConfigError(f"{question} Nobody can be asked here: give {setting}=true to agree")
    get_console().print(f"{question} [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def natural(text: str) -> list[tuple[str, int]]:
    """Sort key by which at_4 comes before at_16."""
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D+)(\d*)", text)]
