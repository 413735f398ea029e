"""The one seam to the experiment tracker, and why a stage never waits for it.

Importing MLflow takes seconds and a tracking server can be away. So a stage only appends what
happens to a spool file of its own (tracking/outbox.py). One process of low priority,
`python -m pipeline.tracking.sender_process`, carries the spool to MLflow while the stages run. What
cannot be sent stays and goes with the next run. Nothing here raises: tracking must not cost a
training.
"""

import functools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config.tracking import TrackingConfig
from pipeline.core.artifact import MANIFEST, Artifact, open_artifact
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError
from pipeline.tracking.outbox import OWNER_VARIABLE, Destination, Owner, mask

Status = Literal["FINISHED", "FAILED", "KILLED"]
REPORT_BYTES = 2 * 2**20
# What is worth a look in the tracker: of a model's folder only what is not configuration.
REPORT_KINDS = {"dataset", "report", "benchmark", "registration"}
_SECRET = re.compile(
    r"(^|[._-])(password|passwd|secret|token|api_?key|access_?key|credentials?)$", re.IGNORECASE
)


class StageRun:
    """One stage run on its way to the tracker."""

    def __init__(self, place: Destination | None = None, name: str = ""):
        self._place = place
        self._name = name
        self._latest: dict[str, tuple[float, int]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Figures while the stage runs, e.g. {"train/loss": 1.2} at step 3."""
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
        """The end of the run, with the artifact that it made, or found when reused."""
        global _current
        _current = None
        end: dict[str, Any] = {"status": status, "reused": reused, "error": mask(error or "")}
        if artifact:
            manifest = artifact.manifest
            path = self._place.relative(artifact.path) if self._place else str(artifact.path)
            end |= {"path": path, "kind": manifest.kind}
            end |= {"digest": manifest.digest, "bytes": manifest.bytes, "code": manifest.code}
            end["metrics"] = self._final(artifact)
            self._keep_reports(artifact)
        self.append("finish", **end)
        with _harmless("the sender of tracked runs cannot be started"):
            if self._place:
                self._place.ensure_sender()

    def append(self, event: str, **content: Any) -> None:
        """Write an event; it is on its way even if the process is killed right after."""
        if not self._place:
            return
        line = json.dumps({"event": event, "time": _milliseconds(), **content}, default=str)
        file = self._place.spool / f"{self._name}.jsonl"
        with _harmless(f"{file} cannot be written, not all is tracked"), file.open("a") as stream:
            stream.write(line + "\n")

    def _final(self, artifact: Artifact) -> dict[str, tuple[float, int]]:
        """The manifest's figures, at the last step at which their curve has a point."""
        manifest = artifact.manifest
        points = {
            key: (float(value), self._latest.get(key, (0.0, 0))[1])
            for key, value in manifest.metrics.items()
        }
        points["stage/seconds"] = (manifest.seconds, 0)
        points["stage/peak_memory_gib"] = (manifest.peak_memory_bytes / 2**30, 0)
        return points

    def _keep_reports(self, artifact: Artifact) -> None:
        """Copies, for by the time they are sent another run may have replaced the artifact."""
        if not self._place:
            return
        target = self._place.spool / f"{self._name}.files"
        with _harmless(f"reports of {artifact.path} cannot be kept for the tracker"):
            for name in [MANIFEST, *reports_of(artifact)]:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / name, target / name)


@dataclass(frozen=True)
class Delivery:
    """What became of a pipeline run's events.

    waiting: stage runs that are not sent; why: what failed, if something did;
    registered: what the registry answered (pipeline.tracking.mlflow_registry), None without one.
    """

    waiting: int = 0
    why: str = ""
    registered: Mapping[str, Any] | None = None


_current: StageRun | None = None


def start_stage(
    artifacts: Path,
    *,
    stage: str,
    config: TrackingConfig,
    params: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    files: Mapping[str, str] | None = None,
) -> StageRun:
    """Start a stage run; `log_metrics` writes to it until it finishes.

    params: the settings of the stage, nested or flat; secrets are masked here.
    inputs: the artifacts it reads, by stage. files: digests of what else it reads, by path.
    """
    global _current
    run = StageRun()
    with _harmless(f"nothing is tracked, {artifacts}/.tracking cannot be used"):
        if config.enabled:
            place = Destination.of(artifacts, config)
            group = place.join_group(config.experiment, stage)
            run = StageRun(place, f"{_milliseconds()}-{os.getpid()}-{stage}-{group.id}")
            run.append(
                "start",
                stage=stage,
                group=asdict(group),
                owner=asdict(Owner.this()),
                params=flatten(params),
                inputs={name: _source(artifact, place) for name, artifact in inputs.items()},
                files=files or {},
                command=mask(" ".join(["python -m pipeline", *sys.argv[1:]])),
                upload_weights=config.upload_weights,
            )
            place.ensure_sender()
    _current = run
    return run


def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Log figures of the stage that runs in this process; without one nothing happens."""
    if _current:
        _current.log_metrics(metrics, step)


def new_group() -> dict[str, str]:
    """Environment that makes the stages of a child process one pipeline run, owned by this one."""
    owner = Owner.this()
    return {OWNER_VARIABLE: f"{owner.pid}:{owner.started}"}


def track_reused(artifacts: Path, config: TrackingConfig, stages: Iterable[str]) -> None:
    """Record, in a pipeline run in which a stage ran, those that DVC had no need to run."""
    if not config.enabled:
        return
    group = Destination.of(artifacts, config).group_here()
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
    """End the pipeline run that this process owns, and wait until MLflow has it.

    Returns at once when sending fails, after `timeout` seconds at the latest.
    """
    if not config.enabled:
        return Delivery()
    place = Destination.of(artifacts, config)
    group = place.group_here()
    if not group:
        return Delivery(len(place.runs()), place.trouble())
    with _harmless(f"{place.spool} cannot be written"):
        replace(group, ended=True).write(place.spool)
    deadline = time.monotonic() + timeout
    while (place.spool / f"{group.id}.group").exists():
        if time.monotonic() > deadline or place.trouble():
            break
        time.sleep(0.1)
        with _harmless("the sender of tracked runs cannot be started"):
            place.ensure_sender()  # it may have been killed
    return Delivery(len(place.runs()), place.trouble(), place.registered(group.id))


def waiting_line(artifacts: Path, config: TrackingConfig) -> str | None:
    """One line for the user when runs wait because sending failed, else None."""
    if not config.enabled:
        return None
    place = Destination.of(artifacts, config)
    count, why = len(place.runs()), place.trouble()
    if refused := len(list((place.folder / "rejected").glob("*.jsonl"))):
        return (
            f"MLflow refused {refused} stage runs, kept in {place.folder / 'rejected'}: see "
            f"{place.folder / 'sender.log'} for the reason, and remove them to silence this"
        )
    if not (count and why):
        return None
    server = "" if place.artifact_root else f"MLFLOW_TRACKING_URI={mask(place.uri)} "
    return (
        f"{count} stage runs wait to be tracked at {mask(place.uri)} ({why}): they are kept and go "
        "with the next run, or with "
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
        elif _SECRET.search(name) and value is not None:
            flat[name] = "***"
        elif isinstance(value, list | tuple):
            flat[name] = mask(json.dumps(value, default=str))
        else:
            flat[name] = mask(str(value))
    return flat


def reports_of(artifact: Artifact) -> list[str]:
    """Names of the files that are logged: small, and made to be looked at."""
    suffixes = {".png", ".html", ".md"}
    if artifact.kind in REPORT_KINDS:
        suffixes |= {".json", ".jsonl"}
    return [
        name
        for name, entry in artifact.manifest.files.items()
        if Path(name).suffix in suffixes and entry["bytes"] <= REPORT_BYTES
        if not name.startswith("tokenizer/")
    ]


def _source(artifact: Artifact, place: Destination) -> dict[str, Any]:
    digest = artifact.manifest.digest
    figures = dict(artifact.manifest.metrics) if artifact.kind == "dataset" else {}
    path = place.relative(artifact.path)
    return {"kind": artifact.kind, "path": path, "digest": digest, "figures": figures}


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def _harmless(consequence: str) -> Iterator[None]:
    """Turn whatever fails into one warning."""
    try:
        yield
    except Exception as error:
        _warn_once(f"{consequence} ({type(error).__name__}: {error})")


@functools.cache
def _warn_once(text: str) -> None:
    get_console().print(f"[yellow]warning[/] {text}", soft_wrap=True)
