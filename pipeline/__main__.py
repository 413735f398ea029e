"""The command line: `python -m pipeline stage=<name> [group=option] [key=value]`.

Composes and validates the configuration, then runs one stage, or the whole graph. Imports nothing
heavy: a refusal answers at once, and helper processes that import this file again start quickly.
"""

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, PipelineError

INTERRUPTED = 130
# Names a file in which a stage that DVC started leaves its exit code: DVC's own is always 255.
EXIT_CODE_FILE = "PIPELINE_EXIT_CODE_FILE"


def main(arguments: list[str]) -> int:
    """Run the command; the exit code as pipeline.errors draws it."""
    if not sys.warnoptions:  # what libraries warn of, a user of the pipeline cannot change
        warnings.simplefilter("ignore")
    code = _guarded(arguments)
    if code and EXIT_CODE_FILE in os.environ:
        Path(os.environ[EXIT_CODE_FILE]).write_text(str(code))
    return code


def _guarded(arguments: list[str]) -> int:
    wants_traceback = "--traceback" in arguments
    try:
        return _run([a for a in arguments if a != "--traceback"])
    except KeyboardInterrupt:
        _say("interrupted: the same command goes on where this one stopped")
        return INTERRUPTED
    except PipelineError as error:
        if wants_traceback:
            traceback.print_exc()
        _say(f"{type(error).__name__}: {error}")
        return error.exit_code
    except Exception as error:
        # Not foreseen, so a fault of the pipeline or of a library: the traceback is what helps.
        traceback.print_exc()
        _say(f"unexpected {type(error).__name__}: {error}: please report it with the lines above")
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments or "--help" in arguments or "-h" in arguments:
        from pipeline.help import help_text

        print(help_text())
        return 0
    from pipeline import compose, launchers

    stage, tree, config = compose.from_command_line(arguments)
    if stage == "config":
        print(compose.to_yaml(tree), end="")
    elif launchers.is_elsewhere(stage, config):
        launchers.submit(stage, arguments, config)
    elif stage == "all":
        return _run_graph(tree, config)
    elif stage in ("serve", "profiles", "doctor", "plan"):
        import importlib

        importlib.import_module(f"pipeline.stages.{stage}").run(config)
    else:
        from pipeline.runner import run_stage

        run_stage(stage, tree, config)
    return 0


def _run_graph(tree: dict[str, Any], config: Any) -> int:
    """Have DVC run what is not up to date, then show what came out."""
    import subprocess
    import tempfile
    import time

    from pipeline import compose, summary, summary_view, tracking
    from pipeline.graph import ROOT, read_graph
    from pipeline.runner import GRAPH_LOCK, hold

    if config.artifacts.resolve() != ROOT / "artifacts":
        raise ConfigError(
            f"artifacts={config.artifacts} cannot be set for the whole graph: dvc.yaml keeps it in "
            "artifacts; run single stages with artifacts=…"
        )
    since = time.time()
    # DVC's commands say `python`: the one that runs now, its environment activated or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, **tracking.new_group()}
    with tempfile.NamedTemporaryFile("r") as left:
        environment[EXIT_CODE_FILE] = left.name
        # Each stage that DVC starts reads params.yaml again: no other run may write it meanwhile.
        with hold(config.artifacts, GRAPH_LOCK):
            compose.write_params(tree)
            code = subprocess.run(
                [sys.executable, "-m", "dvc", "repro"], cwd=ROOT, env=environment, check=False
            ).returncode
        code = int(left.read() or 1) if code else 0
    stages = [n.name for n in read_graph(tree).values() if n.name != "pretrain"]
    tracking.track_reused(config.artifacts, config.tracking, stages)
    if code == 0:
        found = summary.write_summary(config.artifacts, config, since=since)
        summary_view.show_summary(found, config.artifacts)
    delivery = tracking.wait_until_sent(config.artifacts, config.tracking, timeout=60)
    summary_view.show_delivery(delivery)
    return code


def _say(message: str) -> None:
    print(f"pipeline: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
