"""Recorded conversations → the graph again, once enough are new; gate and registry decide.

One look by default, for cron, a systemd timer or a Kubernetes CronJob; with retrain.every it goes
on looking. A run that was interrupted goes on at the next look, whatever is new by then. A model
that the gate refuses is not tried again before there is more to learn from.
"""

import json
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, ConfigError, GateFailed, PipelineError
from pipeline.data import snapshots as recordings
from pipeline.orchestration.graph_run import refuse_other_artifacts, run_graph
from pipeline.orchestration.runner import hold

LOCK, FINISHED = ".retrain.lock", ".retrain.json"
MOST_SECONDS = 366 * 24 * 3600  # between looks; a clock ends somewhere beyond


def run(tree: Mapping[str, Any], config: Config) -> int:
    """Look, once or for ever; the exit code of the graph, 0 where there was nothing to do.

    Raises:
        ConfigError: there is nowhere to look, or the next look is too far off.
        PipelineError: the look failed; those that follow others are told and survived.
    """
    refuse_other_artifacts(config)
    if (config.retrain.every or 0) > MOST_SECONDS:
        raise ConfigError(
            f"retrain.every={config.retrain.every:g} is more than a year of seconds: give fewer, "
            "or null to look once"
        )
    code = _look(tree, config)
    while (wait := config.retrain.every) is not None:
        at = datetime.fromtimestamp(time.time() + wait)
        get_console().print(f"looking again at {at:%Y-%m-%d %H:%M:%S}")
        time.sleep(wait)
        try:
            code = _look(tree, config)
        except PipelineError as error:
            print(f"pipeline: {type(error).__name__}: {error}", file=sys.stderr)
    return code


def _look(tree: Mapping[str, Any], config: Config) -> int:
    settings, snapshots = config.retrain, config.data.folder / config.data.recorded
    if settings.recordings is None:
        raise ConfigError(
            "retrain.recordings is not set: give the folder that a server records into, as with "
            "`stage=serve serve.record=FOLDER`"
        )
    if settings.recordings.resolve() == snapshots.resolve():
        raise ConfigError(
            f"retrain.recordings={settings.recordings} is where snapshots are kept: have the "
            "server record into another folder"
        )
    with hold(config.artifacts, LOCK):
        found = recordings.find_new(settings.recordings, snapshots)
        _tell(found, config)
        if len(found.new) >= settings.min_new:
            recordings.write_snapshot(found.new, snapshots)
        elif not (due := _unfinished(config.artifacts, snapshots)):
            return 0
        else:
            get_console().print(f"the run with {due[-1].name} did not end: it goes on")
        taken = _unfinished(config.artifacts, snapshots)
        code = run_graph(tree, config)
        if code in (0, GateFailed.exit_code):
            _finish(config.artifacts, taken)
    return code


def _tell(found: recordings.Recorded, config: Config) -> None:
    settings, new = config.retrain, len(found.new)
    enough = "training again" if new >= settings.min_new else "not enough to train again"
    line = f"{new} new conversations in {settings.recordings}, {found.known} known"
    if found.unusable:
        line += f", {found.unusable} lines that cannot be trained on"
    get_console().print(f"{line}; retrain.min_new={settings.min_new}: {enough}", soft_wrap=True)


def _unfinished(artifacts: Path, snapshots: Path) -> list[Path]:
    """Snapshots that no run has ended with, oldest first."""
    done = _done(artifacts)
    return [f for f in sorted(snapshots.glob("*.jsonl")) if str(f.resolve()) not in done]


def _finish(artifacts: Path, taken: list[Path]) -> None:
    done = sorted({*_done(artifacts), *(str(file.resolve()) for file in taken)})
    temporary = artifacts / f"{FINISHED}.tmp"
    temporary.write_text(json.dumps(done, indent=1) + "\n")
    temporary.replace(artifacts / FINISHED)


def _done(artifacts: Path) -> set[str]:
    """
    Raises:
        ArtifactError: the file of them is broken, as a full disk can leave it.
    """
    file = artifacts / FINISHED
    if not file.is_file():
        return set()
    try:
        done = json.loads(file.read_bytes())
        if isinstance(done, list) and all(isinstance(name, str) for name in done):
            return set(done)
        cause = "it holds no list of names"
    except ValueError as error:
        cause = str(error)
    raise ArtifactError(
        f"{file}, the list of snapshots that were trained on, cannot be read ({cause}): delete it, "
        "and the next look trains on all of them once more"
    )
