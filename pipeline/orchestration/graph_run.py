"""The whole graph: DVC runs what is not up to date, then a summary is shown.

`stage=all` and `stage=retrain` run it. Imports nothing heavy.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from ctypes import CDLL
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import MANIFEST, kept, open_artifact
from pipeline.core.console import get_console
from pipeline.core.errors import EXIT_CODE_FILE, ArtifactError, Busy, ConfigError
from pipeline.core.paths import PARAMS_FILE
from pipeline.orchestration import compose, summary, summary_view
from pipeline.orchestration.graph import declared_stages, read_graph
from pipeline.orchestration.project import project_folder
from pipeline.orchestration.runner import GRAPH_LOCK, check_files, hold
from pipeline.tracking import client as tracking

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def run_graph(tree: Mapping[str, Any], config: Config) -> int:
    """Bring every artifact of the graph up to date; the exit code of the stage that failed, or 0.

    tree: the composed configuration; config: the same, validated.

    Raises:
        ConfigError: artifacts are elsewhere than dvc.yaml has them. DataError: a file that settings
        name does not exist. Busy: another run is in progress.
    """
    project, stages = project_folder(), declared_stages()
    refuse_other_artifacts(config)
    graph = read_graph(tree)
    for stage in stages:
        check_files(graph[stage])
    since = time.time()
    # DVC's commands say `python`: the one that runs now, whether or not its environment is active.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, **tracking.new_group()}
    with tempfile.NamedTemporaryFile("r") as left:
        environment[EXIT_CODE_FILE] = left.name
        # Each stage that DVC starts reads params.yaml again: no other run may write it meanwhile.
        with hold(config.artifacts, GRAPH_LOCK) as lock:
            _refuse_beside_dvc(project)
            _forget_what_differs(project, config.artifacts, reread=config.verify)
            compose.write_params(project, tree)
            command = [sys.executable, "-m", "dvc", "repro"]
            code = run_command(command, project, environment, lock)
        code = int(left.read() or 1) if code else 0
    tracking.track_reused(config.artifacts, config.tracking, stages)
    if code == 0:
        found = summary.write_summary(config.artifacts, config, since=since)
        summary_view.show_summary(found, config.artifacts)
    delivery = tracking.wait_until_sent(config.artifacts, config.tracking, timeout=60)
    summary_view.show_delivery(delivery)
    if not delivery.registered and (
        line := tracking.waiting_line(config.artifacts, config.tracking)
    ):
        get_console().print(line)
    return code


def run_command(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], lock: int | None = None
) -> int:
    """Run a command that starts stages; its exit code.

    It is interrupted with this process, also where only this one receives the signal, and ends with
    it. lock: descriptor that it inherits, so that no other run begins before it ends.
    """
    libc = CDLL(None)
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=[] if lock is None else [lock],
        process_group=0,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
    ) as process:
        # Only the main thread may handle signals; a launcher of sweeps may use another.
        handles = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _interrupt) if handles else None
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)  # the command, its shell and the stage
            process.wait()
            raise
        finally:
            if handles:
                signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _refuse_beside_dvc(project: Path) -> None:
    """Raise Busy while a `dvc repro` or `dvc exp run` that a user started reads params.yaml."""
    try:
        held = json.loads((project / ".dvc/tmp/rwlock").read_text())
    except (OSError, ValueError):
        return
    entries = [*held.get("write", {}).values(), *chain(*held.get("read", {}).values())]
    for pid in {entry["pid"] for entry in entries}:
        if Path(f"/proc/{pid}").exists():
            raise Busy(f"DVC (process {pid}) runs the graph of {project}: wait for it, or end it")


def _forget_what_differs(project: Path, artifacts: Path, *, reread: bool) -> None:
    """Remove from dvc.lock the stages whose artifacts were made with other settings than it says,
    or whose files are not those that their manifests name.

    DVC records the params.yaml that it finds when a stage ends. If another run has written one
    meanwhile, dvc.lock describes an artifact that was never made. Without the entry DVC starts the
    stage, and the runner compares the fingerprint. DVC itself looks at manifests only.

    reread: read every byte of the files, not only of those that changed.
    """
    file = project / "dvc.lock"
    if not file.is_file():
        return
    import yaml

    lock = yaml.safe_load(file.read_text()) or {}
    wrong = []
    for stage, entry in lock.get("stages", {}).items():
        here = artifacts / stage
        made = next((m for place, m in kept(artifacts, stage) if place == here), None)
        recorded = entry.get("params", {}).get(PARAMS_FILE)
        other = made and recorded is not None and made.config != recorded
        if other or ((here / MANIFEST).is_file() and not _is_whole(here, reread=reread)):
            wrong.append(stage)
    if wrong:
        for stage in wrong:
            del lock["stages"][stage]
        temporary = file.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump(lock, sort_keys=False))
        temporary.replace(file)


def _is_whole(place: Path, *, reread: bool) -> bool:
    try:
        open_artifact(place, reread=reread)
    except ArtifactError as error:
        get_console().print(f"[yellow]made again:[/] {error}", soft_wrap=True)
        return False
    return True


def refuse_other_artifacts(config: Config) -> None:
    """Raise ConfigError unless the artifacts are where dvc.yaml has them."""
    if config.artifacts.resolve() != (project_folder() / "artifacts").resolve():
        raise ConfigError(
            f"artifacts={config.artifacts} cannot be set for the whole graph, which dvc.yaml keeps "
            "in artifacts: remove it, or run single stages with artifacts=…"
        )
