"""The command line: `python -m pipeline stage=<name> [group=option] [key=value]`.

Composes and validates the configuration, then runs one stage, the whole graph, or a sweep of
either. Imports nothing heavy: errors are reported at once, and helper processes that import this
file again start quickly.
"""

import gc
import os
import select
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.console import printable, report
from pipeline.core.errors import EXIT_CODE_FILE, PipelineError

if TYPE_CHECKING:
    from pipeline.orchestration.arguments import Command

INTERRUPTED = 130
UNREAD = 141  # what a shell reports for a command that SIGPIPE ended


def console() -> int:
    """Entry point of the command `pipeline` that an installation brings."""
    return main(sys.argv[1:])


def main(arguments: list[str]) -> int:
    """Run the command; the exit code, as pipeline.core.errors lists them."""
    if not sys.warnoptions:  # a user cannot change what libraries warn about
        warnings.simplefilter("ignore")
    code = _guarded(arguments)
    if code and (left := os.environ.get(EXIT_CODE_FILE)):
        Path(left).write_text(str(code))
    gc.freeze()  # at exit Python would search all objects for garbage: a second with torch
    return code


def _guarded(arguments: list[str]) -> int:
    wants_traceback = "--traceback" in arguments
    try:
        code = _run([a for a in arguments if a != "--traceback"])
        print(end="", flush=True)  # here, so that an output that nobody reads is handled below
        return code
    except KeyboardInterrupt:
        report("interrupted: run the same command again to resume")
        return INTERRUPTED
    except PipelineError as error:
        if wants_traceback:
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        report(f"{type(error).__name__}: {error}")
        return error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return UNREAD
        # Unexpected, so a bug in the pipeline or in a library: the traceback helps.
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        report(f"unexpected {type(error).__name__}: {error}: please report it with the lines above")
        return 1


def _is_unread() -> bool:
    """Whether nobody reads standard output any more, as in `… | head`. If so, the rest of the
    output is discarded: Python would report an error at exit.
    """
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _run(arguments: list[str]) -> int:
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
        from pipeline.orchestration.sweep import run_sweep

        return run_sweep(command)
    return _run_stage(command, arguments)


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
    from pipeline.deployment.launchers import submission as launchers
    from pipeline.orchestration import compose

    stage, tree, config = compose.load_command(command)
    if stage == "config":
        print(compose.to_yaml(tree), end="")
    elif launchers.is_elsewhere(stage, config):
        launchers.submit(stage, arguments, config)
    elif stage == "all":
        from pipeline.orchestration.graph_run import run_graph

        return run_graph(tree, config)
    elif stage == "retrain":
        from pipeline.stages import retrain

        return retrain.run(tree, config)
    elif stage in ("serve", "profiles", "verify", "doctor", "plan"):
        import importlib

        importlib.import_module(f"pipeline.stages.{stage}").run(config)
    else:
        from pipeline.orchestration.runner import run_stage

        run_stage(stage, tree, config)
    return 0


def _init(words: list[str]) -> int:
    from pipeline.core.errors import ConfigError
    from pipeline.orchestration.project import init

    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("give one folder: `python -m pipeline init DIR`")
    for name in init(Path(words[0])):
        print(f"  {name}")
    print(f"{words[0]} is a project: run `cd {words[0]} && python -m pipeline stage=all`")
    return 0


if __name__ == "__main__":
    sys.exit(console())
