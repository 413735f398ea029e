"""What every command of the package does with errors: one line, and the exit code for it."""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pipeline.core.console import report, write_error
from pipeline.core.errors import EXIT_CODE_FILE, ConfigError, DataError, PipelineError, short
from pipeline.core.resource_errors import explained

INTERRUPTED = 130


def run_command(
    run: Callable[[], int | None],
    *,
    wants_traceback: bool = False,
    interrupted: str = "interrupted: run the same command again",
    files: Collection[Path | None] = (),
) -> int:
    """Run a command, and report in one line why it failed.

    run: gives its exit code; None stands for 0. wants_traceback: show it for each error, as
    --traceback asks. interrupted: what Ctrl-C is answered with. files: those that the command line
    names; one that cannot be opened is the user's to correct.

    Returns:
        The exit code, as pipeline.core.errors lists them; 1 for an error that nobody foresaw, which
        is shown with its traceback.
    """
    code = _code(run, wants_traceback, interrupted, {str(file) for file in files if file})
    if code and (left := os.environ.get(EXIT_CODE_FILE)):
        with suppress(OSError):
            Path(left).write_text(str(code))
    return code


class Parser(argparse.ArgumentParser):
    """Reads a command's options, and refuses what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        report(f"ConfigError: {short(message, 300)} (see `{self.prog} --help`)")
        sys.exit(ConfigError.exit_code)


def number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], Any]:
    """The type of an option that is a number within bounds, for argparse."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if least <= (value := kind(text)) <= most:  # nan is not
                return value
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not between {least:g} and {most:g}")

    return read


def _code(
    run: Callable[[], int | None], wants_traceback: bool, interrupted: str, files: set[str]
) -> int:
    try:
        return run() or 0
    except KeyboardInterrupt:
        report(interrupted)
        return INTERRUPTED
    except Exception as error:
        found = error if isinstance(error, PipelineError) else explained(error)
        if (
            found is None
            and isinstance(error, OSError)
            and (error.filename in files or error.errno == errno.ENAMETOOLONG)
        ):
            found = DataError(f"{error.filename} cannot be used ({error.strerror}): name another")
        if wants_traceback or found is None:  # unforeseen: a bug here or in a library
            write_error(traceback.format_exc())
        if found is not None:
            report(f"{type(found).__name__}: {found}")
            return found.exit_code
        report(f"unexpected {type(error).__name__}: {error}: please report it with the lines above")
        return 1
