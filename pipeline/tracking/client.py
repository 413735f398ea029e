"""The interface to the experiment tracker. A stage never waits for it.

Importing MLflow takes seconds, and a tracking server can be unreachable. So a stage only appends
events to its own file in the outbox (tracking/outbox.py). One process of low priority,
`python -m pipeline.tracking.sender_process`, sends the outbox to MLflow while stages run. What
cannot be sent stays there, and the next run sends it. Nothing here raises: a failure of tracking
must not stop a training.
"""

import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config.tracking import TrackingConfig
from pipeline.core.artifact import Artifact, open_artifact
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError
from pipeline.core.paths import MANIFEST
from pipeline.core.processes import Process
from pipeline.core.secrets import mask, mask_tree
from pipeline.tracking.outbox import OWNER_VARIABLE, Destination
from pipeline.tracking.reachable import unreachable

Status = Literal["FINISHED", "FAILED", "KILLED"]
REPORT_BYTES = 2 * 2**20
# Kinds of artifacts whose JSON files are reports. In a model's folder they are configuration.
REPORT_KINDS = {"dataset", "report", "benchmark", "registration"}


class StageRun:
    """One run of a stage, written to the outbox."""

    def __init__(self, destination: Destination | None = None, name: str = ""):
        self._destination = destination
        self._name = name
        self._latest: dict[str, tuple[float, int]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics while the stage runs, e.g. {"train/loss": 1.2} at step 3."""
        points = {key: (float(value), int(step or 0)) for key, value in metrics.items()}
        self._latest |= points
        self.append("metrics", metrics=points)

    def finish(
        self,
        status: Status,
        artifact: Artifact | None,
        *,
        reused: bool = False,
        error: str | None = None,
    ) -> None:
        """End the run, with the artifact that it made or, if `reused`, found."""
        global _current
        _current = None
        end: dict[str, Any] = {"status": status, "reused": reused, "error": mask(error or "")}
        if artifact:
            manifest = artifact.manifest
            there = self._destination
            path = there.relative(artifact.path) if there else str(artifact.path)
            end |= {"path": path, "kind": manifest.kind}
            end |= {"digest": manifest.digest, "bytes": manifest.bytes, "code": manifest.code}
            end["metrics"] = self._final(artifact)
            self._copy_reports(artifact)
        self.append("finish", **end)
        with _warn_on_failure("the process that sends runs to MLflow cannot be started"):
            if self._destination:
                self._destination.ensure_sender()

    def append(self, event: str, **content: Any) -> None:
        """Write an event. It will be sent even if this process is killed right after."""
        if not self._destination:
            return
        line = json.dumps({"event": event, "time": _milliseconds(), **content}, default=str)
        file = self._destination.outbox / f"{self._name}.jsonl"
        incomplete = f"{file} cannot be written, tracking is incomplete"
        with _warn_on_failure(incomplete), file.open("a") as stream:
            stream.write(line + "\n")

    def _final(self, artifact: Artifact) -> dict[str, tuple[float, int]]:
        """The manifest's metrics, each at the last step at which it was logged."""
        manifest = artifact.manifest
        points = {
            key: (float(value), self._latest.get(key, (0.0, 0))[1])
            for key, value in manifest.metrics.items()
        }
        points["stage/seconds"] = (manifest.seconds, 0)
        points["stage/peak_memory_gib"] = (manifest.peak_memory_bytes / 2**30, 0)
        return points

    def _copy_reports(self, artifact: Artifact) -> None:
        """Copy the reports, because another run may replace the artifact before they are sent."""
        if not self._destination:
            return
        target = self._destination.outbox / f"{self._name}.files"
        with _warn_on_failure(f"the reports of {artifact.path} cannot be copied for MLflow"):
            for name in [MANIFEST, *reports_of(artifact)]:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / name, target / name)


@dataclass(frozen=True)
class Delivery:
    """The result of sending a pipeline run's events.

    waiting: number of stage runs that are not sent yet.
    why: the error that prevented sending; empty without one.
    registered: the result of the registration (tracking/mlflow_registry.py), if there was one.
    """

    waiting: int = 0
    why: str = ""
    registered: Mapping[str, Any] | None = None


_current: StageRun | None = None


def experiment_of(config: TrackingConfig) -> str:
    """As for the server's address, MLflow's own variable comes first."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or config.experiment


def start_stage(
    artifacts: Path,
    *,
    stage: str,
    config: TrackingConfig,
    params: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    files: Mapping[str, str] | None = None,
) -> StageRun:
    """Start a stage run. `log_metrics` writes to it until it finishes.

    Args:
        params: the stage's settings, nested or flat; secrets are masked here.
        inputs: the artifacts that it reads, by stage.
        files: digests of the other files that it reads, by path.
    """
    global _current
    run = StageRun()
    with _warn_on_failure(f"nothing is tracked: {artifacts}/.tracking cannot be used"):
        if config.enabled:
            destination = Destination.of(artifacts, config)
            group = destination.join_group(experiment_of(config), stage)
            run = StageRun(destination, f"{_milliseconds()}-{os.getpid()}-{stage}-{group.id}")
            run.append(
                "start",
                stage=stage,
                group=asdict(group),
                owner=asdict(Process.this()),
                params=flatten(params),
                inputs={name: _source(artifact, destination) for name, artifact in inputs.items()},
                files=files or {},
                command=mask(" ".join(["python -m pipeline", *sys.argv[1:]])),
                upload_weights=config.upload_weights,
            )
            destination.ensure_sender()
    _current = run
    return run


def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Log metrics of the stage that runs in this process. No effect without one."""
    if _current:
        _current.log_metrics(metrics, step)


def new_group() -> dict[str, str]:
    """Environment variables for a child process whose stages form one pipeline run.

    This process owns the run: it ends with this process.
    """
    return {OWNER_VARIABLE: str(Process.this())}


def track_reused(artifacts: Path, config: TrackingConfig, stages: Iterable[str]) -> None:
    """Add the stages that DVC did not need to run to the pipeline run, if any stage ran."""
    group = None
    with _warn_on_failure(f"{artifacts}/.tracking cannot be read"):
        group = Destination.of(artifacts, config).group_here() if config.enabled else None
    if not group:  # nothing ran, so there is no pipeline run
        return
    for stage in stages:
        if stage in group.stages:
            continue
        try:
            found = open_artifact(artifacts / stage)
        except ArtifactError:
            continue
        run = start_stage(
            artifacts, stage=stage, config=config, params=found.manifest.config, inputs={}
        )
        run.finish("FINISHED", found, reused=True)


def wait_until_sent(artifacts: Path, config: TrackingConfig, timeout: float) -> Delivery:
    """End the pipeline run that this process owns, and wait until it is sent to MLflow.

    Returns at once if sending fails, and after `timeout` seconds at the latest.
    """
    if not config.enabled:
        return Delivery()
    try:
        return _wait(Destination.of(artifacts, config), timeout)
    except Exception as error:
        return Delivery(why=reason(error))


def _wait(destination: Destination, timeout: float) -> Delivery:
    group = destination.group_here()
    if not group:
        return Delivery(len(destination.runs()), destination.last_error())
    with _warn_on_failure(f"{destination.outbox} cannot be written"):
        replace(group, ended=True).write(destination.outbox)
    deadline = time.monotonic() + timeout
    while (destination.outbox / f"{group.id}.group").exists():
        if time.monotonic() > deadline or destination.last_error():
            break
        time.sleep(0.1)
        with _warn_on_failure("the process that sends runs to MLflow cannot be started"):
            destination.ensure_sender()  # it may have been killed
    return Delivery(
        len(destination.runs()), destination.last_error(), destination.registered(group.id)
    )


def waiting_line(artifacts: Path, config: TrackingConfig) -> str | None:
    """One line for the user if runs could not be sent, else None."""
    if not config.enabled:
        return None
    try:
        destination = Destination.of(artifacts, config)
    except Exception as error:  # an address that cannot be read, or a variable that is not set
        return f"nothing is tracked ({reason(error)}): correct tracking.uri"
    count = len(destination.runs())
    why = destination.last_error() or (count and unreachable(destination.uri))
    if refused := len(list((destination.folder / "rejected").glob("*.jsonl"))):
        return (
            f"MLflow refused {refused} stage runs, kept in {destination.folder / 'rejected'}: see "
            f"{destination.folder / 'sender.log'} for the reason; delete them to hide this message"
        )
    if not (count and why):
        return None
    server = "" if destination.artifact_root else f"MLFLOW_TRACKING_URI={mask(destination.uri)} "
    return (
        f"{count} stage runs could not be sent to {mask(destination.uri)} ({why}): the next run "
        "sends them, or send them now with "
        f"`{server}python -m pipeline.tracking.sender_process {artifacts}`"
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as {"a.b": "value"}, lists as JSON, secrets masked.

    >>> flatten({"a": {"b": 1, "api_key": "x"}, "c": [1, 2]})
    {'a.b': '1', 'a.api_key': '***', 'c': '[1, 2]'}
    """
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            masked = mask_tree(value, name)
            is_list = isinstance(masked, list)
            flat[name] = mask(json.dumps(masked, default=str)) if is_list else mask(str(masked))
    return flat


def reports_of(artifact: Artifact) -> list[str]:
    """Names of the files that are sent to the tracker: small reports and plots."""
    suffixes = {".png", ".html", ".md"}
    if artifact.kind in REPORT_KINDS:
        suffixes |= {".json", ".jsonl"}
    return [
        name
        for name, entry in artifact.manifest.files.items()
        if Path(name).suffix in suffixes and entry["bytes"] <= REPORT_BYTES
        if not name.startswith("tokenizer/")
    ]


def _source(artifact: Artifact, destination: Destination) -> dict[str, Any]:
    digest = artifact.manifest.digest
    figures = dict(artifact.manifest.metrics) if artifact.kind == "dataset" else {}
    path = destination.relative(artifact.path)
    return {"kind": artifact.kind, "path": path, "digest": digest, "figures": figures}


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def reason(error: BaseException) -> str:
    """One line about an error, without secrets."""
    return f"{type(error).__name__}: {mask(' '.join(str(error).split()))[:200]}"


@contextmanager
def _warn_on_failure(consequence: str) -> Iterator[None]:
    """Turn any exception into one warning."""
    try:
        yield
    except Exception as error:
        _warn_once(f"{consequence} ({reason(error)})")


@functools.cache
def _warn_once(text: str) -> None:
    get_console().print(f"[yellow]warning[/] {text}", soft_wrap=True)
