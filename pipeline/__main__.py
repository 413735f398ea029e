"""The command line: `python -m pipeline stage=<name> [group=option] [key=value]`.

Composes and validates the configuration, then runs one stage, or the whole graph. Imports nothing
heavy: a refusal answers at once, and helper processes that import this file again start quickly.
"""

import gc
import os
import select
import sys
import traceback
import warnings
from pathlib import Path

from pipeline.core.errors import EXIT_CODE_FILE, PipelineError

INTERRUPTED = 130
UNREAD = 141  # what a shell tells of a command that SIGPIPE ended


def main(arguments: list[str]) -> int:
    """Run the command; the exit code as pipeline.core.errors draws it."""
    if not sys.warnoptions:  # what libraries warn of, a user of the pipeline cannot change
        warnings.simplefilter("ignore")
    code = _guarded(arguments)
    if code and (left := os.environ.get(EXIT_CODE_FILE)):
        Path(left).write_text(str(code))
    gc.freeze()  # Python ends with a search of all that libraries made: a second with torch
    return code


def _guarded(arguments: list[str]) -> int:
    wants_traceback = "--traceback" in arguments
    try:
        code = _run([a for a in arguments if a != "--traceback"])
        print(end="", flush=True)  # here, where it is caught that nobody reads
        return code
    except KeyboardInterrupt:
        _say("interrupted: the same command goes on where this one stopped")
        return INTERRUPTED
    except PipelineError as error:
        if wants_traceback:
            traceback.print_exc()
        _say(f"{type(error).__name__}: {error}")
        return error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return UNREAD
        # Not foreseen, so a fault of the pipeline or of a library: the traceback is what helps.
        traceback.print_exc()
        _say(f"unexpected {type(error).__name__}: {error}: please report it with the lines above")
        return 1


def _is_unread() -> bool:
    """Whether nobody reads standard output any more, as behind `| head`; what is left of it then
    goes nowhere, since Python would complain of it when it ends.
    """
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _run(arguments: list[str]) -> int:
    if not arguments or "--help" in arguments or "-h" in arguments:
        from pipeline.orchestration.help import help_text

        print(help_text())
        return 0
    from pipeline.deployment.launchers import submission as launchers
    from pipeline.orchestration import compose

    stage, tree, config = compose.from_command_line(arguments)
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
    elif stage in ("serve", "profiles", "doctor", "plan"):
        import importlib

        importlib.import_module(f"pipeline.stages.{stage}").run(config)
    else:
        from pipeline.orchestration.runner import run_stage

        run_stage(stage, tree, config)
    return 0


def _say(message: str) -> None:
    print(f"pipeline: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
