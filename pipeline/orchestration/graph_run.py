"""The whole graph: DVC runs what is not up to date, then a summary is shown.

`stage=all` and `stage=retrain` run it. Imports nothing heavy.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import EXIT_CODE_FILE, ConfigError, PipelineError
from pipeline.core.processes import ends_with_this, terminated_as_interrupted
from pipeline.data.preparation import remote
from pipeline.deployment.launchers.submission import check_nodes
from pipeline.models.sources.fetching import fetch
from pipeline.orchestration import compose, dvc_files, summary, summary_view
from pipeline.orchestration.graph import declared_stages, read_graph
from pipeline.orchestration.project import project_folder
from pipeline.orchestration.runner import GRAPH_LOCK, check_files, hold
from pipeline.planner.refusals import check_run
from pipeline.tracking import client as tracking

INTERRUPT_SECONDS = 10.0  # for a stage to end by itself


def run_graph(tree: Mapping[str, Any], config: Config) -> int:
    """Bring every artifact of the graph up to date; the exit code of the stage that failed, or 0.

    tree: the composed configuration; config: the same, validated.

    Raises:
        ConfigError: artifacts are elsewhere than dvc.yaml has them. DataError: a file that settings
        name does not exist. Busy: another run is in progress. PipelineError: DVC failed or was
        killed, and no stage said why, or a stage would refuse its settings or the model's
        config.json (planner/refusals.py).
    """
    project, stages = project_folder(), declared_stages()
    refuse_other_artifacts(config)
    graph = read_graph(tree)
    for stage in stages:
        check_files(graph[stage])
    check_nodes("all", config)
    check_run(config)
    fetch(config.model.path, config.artifacts)
    remote.fetch(config.data, config.artifacts)
    since = time.time()
    # DVC's commands say `python`: the one that runs now, whether or not its environment is active.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, **tracking.new_group()}
    with tempfile.NamedTemporaryFile("r") as left:
        environment[EXIT_CODE_FILE] = left.name
        # Each stage that DVC starts reads params.yaml again: no other run may write it meanwhile.
        with hold(config.artifacts, GRAPH_LOCK) as lock:
            dvc_files.check(project)
            dvc_files.forget_what_differs(project, config.artifacts, reread=config.verify)
            compose.write_params(project, tree)
            command = [sys.executable, "-m", "dvc", "repro"]
            ended = run_command(command, project, environment, lock)
        code = _exit_code(left.read()) if ended else 0
    tracking.track_reused(config.artifacts, config.tracking, stages)
    if not ended:
        found = summary.write_summary(config.artifacts, config, since=since)
        summary_view.show_summary(found, config.artifacts)
    delivery = tracking.wait_until_sent(config.artifacts, config.tracking, timeout=60)
    summary_view.show_delivery(delivery)
    if not delivery.registered and (
        line := tracking.waiting_line(config.artifacts, config.tracking)
    ):
        get_console().print(line)
    if ended and not code:
        raise _how_dvc_ended(ended)
    return code


def run_command(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], lock: int | None = None
) -> int:
    """Run a command that starts stages; its exit code, or minus the signal that killed it.

    It is interrupted with this process, also where only this one receives the signal, and ends with
    it. lock: descriptor that it inherits, so that no other run begins before it ends.
    """
    with (
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[] if lock is None else [lock],
            process_group=0,
            preexec_fn=ends_with_this(),
        ) as process,
        terminated_as_interrupted(),
    ):
        try:
            code = process.wait()
            if code < 0:
                # What it had started ends by itself, unless it has only just begun.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            return code
        except KeyboardInterrupt:
            _interrupt_all(process)
            raise


def _interrupt_all(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt the command, its shell and the stage, and wait for the end of the command.

    A library may swallow an interrupt, as while it is imported, and a job that a shell runs in the
    background ignores it. So harder signals follow.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    for number in (*([] if ignored else [signal.SIGINT]), signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(INTERRUPT_SECONDS)
            return


def _how_dvc_ended(code: int) -> PipelineError:
    """Of a `dvc repro` that failed without a stage that says why."""
    again = "run the same command again to resume"
    if code < 0:
        name = signal.Signals(-code).name
        often = (
            ", as the system does when memory runs out (see `dmesg`)" if name == "SIGKILL" else ""
        )
        return PipelineError(f"DVC was killed by {name}{often}: {again}")
    return PipelineError(
        f"DVC ended with exit code {code}, for the reason above; a stage that was killed gives "
        f"none (see `dmesg` if memory may have run out): {again}"
    )


def _exit_code(text: str) -> int:
    """What a stage that failed left; 0 if it left nothing."""
    return int(text) if text.strip().isdecimal() else 0


def refuse_other_artifacts(config: Config) -> None:
    """Raise ConfigError unless the artifacts are where dvc.yaml has them."""
    if config.artifacts.resolve() != (project_folder() / "artifacts").resolve():
        raise ConfigError(
            f"artifacts={config.artifacts} cannot be set for the whole graph, which dvc.yaml keeps "
            "in artifacts: remove it, or run single stages with artifacts=…"
        )
