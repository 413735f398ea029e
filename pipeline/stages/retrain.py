"""Recorded conversations → the graph again, once enough are new; gate and registry decide.

Checks once by default, for cron, a systemd timer or a Kubernetes CronJob; with retrain.every it
checks repeatedly. An interrupted run resumes at the next check, whatever is new by then. A model
that the gate refuses is not trained again until there is more data.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.console import get_console, report
from pipeline.core.errors import ArtifactError, ConfigError, GateFailed, PipelineError
from pipeline.core.paths import keep_out_of_git
from pipeline.data import snapshots as recordings
from pipeline.data.preparation import remote
from pipeline.orchestration.graph_run import refuse_other_artifacts, run_graph
from pipeline.orchestration.runner import hold

LOCK, FINISHED = ".retrain.lock", ".retrain.json"


def run(tree: Mapping[str, Any], config: Config) -> int:
    """Check once, or repeatedly; the exit code of the graph, 0 if there was nothing to do.

    Raises:
        ConfigError: the folder of recordings is not set.
        PipelineError: the first check failed; later failures are reported, and checking continues.
    """
    refuse_other_artifacts(config)
    code = _check(tree, config)
    while (wait := config.retrain.every) is not None:
        at = datetime.fromtimestamp(time.time() + wait)
        get_console().print(f"next check at {at:%Y-%m-%d %H:%M:%S}")
        time.sleep(wait)
        try:
            code = _check(tree, config)
        except PipelineError as error:
            report(f"{type(error).__name__}: {error}")
    return code


def _check(tree: Mapping[str, Any], config: Config) -> int:
    settings, snapshots = config.retrain, config.data.folder / config.data.recorded
    if settings.recordings is None:
        raise ConfigError(
            "retrain.recordings is not set: give the folder that a server records into, as with "
            "`stage=serve serve.record=FOLDER`"
        )
    if source := remote.provenance(config.data.folder, config.artifacts):
        raise ConfigError(
            f"data.folder={source['source']} takes no snapshots of conversations: copy its files, "
            "and give their folder"
        )
    if settings.recordings.resolve() == snapshots.resolve():
        raise ConfigError(
            f"retrain.recordings={settings.recordings} is where snapshots are kept: let the "
            "server record into another folder"
        )
    if (objective := config.finetune.objective) != "sft":
        raise ConfigError(
            f"finetune.objective={objective} learns nothing from recorded conversations, which "
            "have one answer without a verdict: set finetune.objective=sft, or run stage=all"
        )
    with hold(config.artifacts, LOCK):
        found = recordings.find_new(settings.recordings, snapshots)
        with suppress(OSError):  # a folder that is only read is somebody else's
            keep_out_of_git(settings.recordings)
        _report(found, config)
        if len(found.new) >= settings.min_new:
            recordings.write_snapshot(found.new, snapshots)
        elif not (due := _unfinished(config.artifacts, snapshots)):
            return 0
        else:
            get_console().print(f"the run with {due[-1].name} did not finish: resuming it")
        taken = _unfinished(config.artifacts, snapshots)
        code = run_graph(tree, config)
        if code in (0, GateFailed.exit_code):
            _finish(config.artifacts, taken)
    return code


def _report(found: recordings.Recorded, config: Config) -> None:
    settings, new = config.retrain, len(found.new)
    enough = "retraining" if new >= settings.min_new else "not enough to retrain"
    line = f"{new} new conversations in {settings.recordings}, {found.known} known"
    if found.unusable:
        line += f", {found.unusable} lines that training cannot use"
    if found.forgotten:
        line += f", {found.forgotten} to be forgotten"
    get_console().print(f"{line}; retrain.min_new={settings.min_new}: {enough}", soft_wrap=True)


def _unfinished(artifacts: Path, snapshots: Path) -> list[Path]:
    """Snapshots that no finished run has trained on, oldest first."""
    done = _done(artifacts)
    return [file for file in sorted(snapshots.glob("*.jsonl")) if file.name not in done]


def _finish(artifacts: Path, taken: list[Path]) -> None:
    done = sorted({*_done(artifacts), *(file.name for file in taken)})
    temporary = artifacts / f"{FINISHED}.tmp"
    temporary.write_text(json.dumps(done, indent=1) + "\n")
    temporary.replace(artifacts / FINISHED)


def _done(artifacts: Path) -> set[str]:
    """Names of the snapshots that were trained on; without folders, so that a project can move.

    Raises:
        ArtifactError: the file of them is broken, as a full disk can leave it.
    """
    file = artifacts / FINISHED
    if not file.exists():
        return set()
    try:
        done = json.loads(file.read_bytes())
        if isinstance(done, list) and all(isinstance(name, str) for name in done):
            return {Path(name).name for name in done}  # earlier versions wrote whole paths
        cause = "it holds no list of names"
    except (OSError, ValueError, RecursionError) as error:
        cause = str(error)
    raise ArtifactError(
        f"{file}, the list of snapshots that were trained on, cannot be read ({cause}): delete it, "
        "and the next check trains on all of them once more"
    )
