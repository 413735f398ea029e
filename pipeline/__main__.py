"""The command line: `python -m pipeline stage=<name> [group=option] [key=value]`.

Composes and validates the configuration, then runs one stage, the whole graph, or a sweep of
either. Imports nothing heavy: errors are reported at once, and helper processes that import this
file again start quickly.
"""

import gc
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from pipeline.core import secrets
from pipeline.core.commands import run_command
from pipeline.core.console import Lenient, report
from pipeline.core.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.config.schema import Config
    from pipeline.orchestration.arguments import Command

UNREAD = 141  # what a shell reports for a command that SIGPIPE ended


def console() -> int:
    """Entry point of the command `pipeline` that an installation brings."""
    _open_standard_streams()
    # A stage does not fail because nobody reads what a library prints.
    output = Lenient("stdout", stream=sys.stdout)
    sys.stdout = cast(TextIO, output)
    code = main(sys.argv[1:])
    if code == ResourceError.exit_code:
        # A library whose start was cut short for want of memory can crash as Python ends.
        with suppress(OSError, ValueError):
            output.flush()
            sys.stderr.flush()
        os._exit(code)
    return code or _unwritten(output)


def main(arguments: list[str]) -> int:
    """Run the command; the exit code, as pipeline.core.errors lists them."""
    if not sys.warnoptions:  # a user cannot change what libraries warn about
        warnings.simplefilter("ignore")
    secrets.remember_words(arguments)
    words = [a for a in arguments if a != "--traceback"]
    code = run_command(
        lambda: _run(words),
        wants_traceback=words != arguments,
        interrupted="interrupted: run the same command again to resume",
    )
    gc.freeze()  # at exit Python would search all objects for garbage: a second with torch
    return code


def _open_standard_streams() -> None:
    """Give what was closed (`>&-`) to /dev/null.

    Otherwise the next file that is opened, maybe a checkpoint, is what libraries print into.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working folder was deleted: change to one that exists") from None


def _unwritten(output: Lenient) -> int:
    """The exit code if standard output could not be written, else 0."""
    output.flush()
    if output.failed is None:
        return 0
    # Python writes the rest at exit, and would report an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    if isinstance(output.failed, BrokenPipeError):  # nobody reads it, as in `… | head`
        return UNREAD
    report(f"ResourceError: standard output cannot be written ({output.failed.strerror})")
    return ResourceError.exit_code


def _run(arguments: list[str]) -> int:
    _check_working_folder()
    if arguments[:1] == ["init"]:
        return _init(arguments[1:])
    from pipeline.orchestration import arguments as command_line

    command = command_line.parse(arguments)
    if command.prints or not arguments:
        _print(command)
        return 0
    from pipeline.orchestration import compose
    from pipeline.orchestration.project import enter_project

    enter_project(compose.known_stage(command.stage))
    if command.multirun:
        return _sweep(command)
    return _run_stage(command, arguments)


def _sweep(command: "Command") -> int:
    from pipeline.orchestration.sweep import run_sweep

    return run_sweep(command)


def _print(command: "Command") -> None:
    """What is asked for in place of a run."""
    if command.prints == "version":
        from pipeline import __version__

        print(f"pipeline {__version__}")
    elif command.prints == "config":
        from pipeline.orchestration.inspection import show_config

        show_config(command)
    elif command.prints == "info":
        from pipeline.orchestration.inspection import show_info

        show_info(command)
    elif command.stage:
        from pipeline.orchestration.stage_help import stage_help

        print(stage_help(command.stage, command.overrides))
    else:
        from pipeline.orchestration.help import help_text

        print(help_text())


def _run_stage(command: "Command", arguments: list[str]) -> int:
    from pipeline.orchestration import compose

    stage, tree, config = compose.load_command(command)
    _check_effects(stage, tree, config, command)
    return _start(stage, tree, config, arguments)


def _check_effects(
    stage: str, tree: "Mapping[str, Any]", config: "Config", command: "Command"
) -> None:
    """Refuse a setting that would have no effect."""
    from pipeline.core.artifact import main_folder
    from pipeline.orchestration import lineage

    if not command.params:
        lineage.check(stage, tree, config, command.overrides)
    elif main_folder(config.artifacts) == config.artifacts:  # a sweep checks its own words
        lineage.check_made(stage, tree, config)


def _start(stage: str, tree: "Mapping[str, Any]", config: "Config", arguments: list[str]) -> int:
    """Run a stage, or submit the command line to a cluster; the exit code."""
    from pipeline.deployment.launchers import submission as launchers
    from pipeline.orchestration.graph import OUTSIDE

    if stage == "config":
        from pipeline.orchestration import compose

        print(compose.to_yaml(secrets.mask_tree(tree)), end="")
    elif launchers.is_elsewhere(stage, config):
        launchers.submit(stage, arguments, config)
    elif stage == "all":
        from pipeline.orchestration.graph_run import run_graph

        return run_graph(tree, config)
    elif stage == "retrain":
        from pipeline.stages import retrain

        return retrain.run(tree, config)
    elif stage in OUTSIDE:
        import importlib

        importlib.import_module(f"pipeline.stages.{stage}").run(config)
    else:
        from pipeline.core.processes import end_with
        from pipeline.orchestration.project import refuse_copy
        from pipeline.orchestration.runner import run_stage
        from pipeline.tracking.outbox import started_by

        refuse_copy(Path.cwd())
        end_with(started_by())
        run_stage(stage, tree, config)
    return 0


def _init(words: list[str]) -> int:
    from pipeline.orchestration.project import init

    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("give one folder: `python -m pipeline init DIR`")
    for name in init(Path(words[0])):
        print(f"  {name}")
    print(f"{words[0]} is a project: run `cd {words[0]} && python -m pipeline stage=all`")
    return 0


if __name__ == "__main__":
    sys.exit(console())
