"""Sends the outbox to MLflow: one parent run per pipeline run, one nested run per stage run.

The process may be killed at any time. A hidden tag of each MLflow run says how far it was sent,
every run is searched for before it is created, and MLflow stores a point that is sent twice once.
So the next sender resumes without losing or duplicating anything.
"""

import json
import math
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipeline.core.artifact import open_artifact
from pipeline.core.console import write_error
from pipeline.core.errors import ArtifactError
from pipeline.core.processes import Process
from pipeline.tracking import mlflow_notes, mlflow_registry
from pipeline.tracking.mlflow_entities import (
    PARAM_LENGTH,
    allowed_name,
    artifact_tags,
    batches,
    commit_tags,
    dataset_input,
    source_tags,
)
from pipeline.tracking.mlflow_store import upgrade_store
from pipeline.tracking.outbox import (
    Destination,
    Group,
    embedded_store,
    read_events,
)
from pipeline.tracking.relative_paths import make_relative

# Tags that begin with "mlflow." are not shown.
SENT, RUN, STAGE = "mlflow.pipeline.sent", "mlflow.pipeline.run", "mlflow.pipeline.stage"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
CONTEXTS = {"finetune": "training", "quantize": "calibration", "evaluate": "evaluation"}
# With more than 100 metrics in a batch, MLflow's SQL store fails on points that it already has.
METRICS, PARAMS = 100, 100  # per batch
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


@dataclass
class OpenStageRun:
    """A stage run that is being sent. sent: bytes of its file in the outbox that were sent."""

    run_id: str
    parent_id: str
    start: Mapping[str, Any]
    sent: int


class Sender:
    """Sends the outbox of one destination."""

    def __init__(self, destination: Destination):
        if destination.artifact_root:  # also creates the database's folder
            destination.artifact_root.mkdir(parents=True, exist_ok=True)
        upgrade_store(destination.uri)
        self.destination = destination
        self._make_relative()
        mlflow.set_tracking_uri(destination.uri)  # the registry's client finds models there
        self.client = MlflowClient()
        self.open_run: dict[Path, OpenStageRun] = {}
        self.experiments: dict[str, str] = {}
        self.parents: dict[str, str] = {}
        self.refused: set[Path] = set()

    def send_all(self) -> bool:
        """Send everything in the outbox. Returns whether more may come."""
        # An embedded store has relative paths, which MLflow resolves against the working folder.
        with chdir(self.destination.base if self.destination.artifact_root else "."):
            return self._send_all()

    def _send_all(self) -> bool:
        groups = [(group, group.is_open()) for group in self.destination.groups()]
        for file in self.destination.runs():
            with self._reject_refused(file):
                self.send(file)
        self._remove_files_of_sent()
        for group, is_open in groups:
            if not is_open and not self.destination.runs_of(group.id):
                file = self.destination.outbox / f"{group.id}.group"
                with self._reject_refused(file):
                    self.close(group)
                    file.unlink()
        return not self.destination.is_empty()

    def send(self, file: Path) -> None:
        """Send the new lines of a stage run's file. Removes the file after the last line."""
        open_run = self.open_run.get(file) or self._open_run(file)
        if not open_run:
            return
        # Checked before reading: a process that has ended writes nothing more.
        was_alive = Process(**open_run.start["owner"]).is_alive()
        events, end = read_events(file, open_run.sent)
        self._log_points(open_run, events)
        last: dict[str, Any] = next((e for e in events if e["event"] == "finish"), {})
        if not last and not was_alive:
            written = int(file.stat().st_mtime * 1000)
            last = {"status": "KILLED", "time": written, "error": "the process was killed"}
        if last:
            self._finish(file, open_run, last)
            file.unlink()  # before its reports, which are needed while it exists
            self.open_run.pop(file)
        elif end > open_run.sent:
            self.client.set_tag(open_run.run_id, SENT, str(end))
            open_run.sent = end

    def _remove_files_of_sent(self) -> None:
        for folder in self.destination.outbox.glob("*.files"):
            if not folder.with_suffix(".jsonl").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def close(self, group: Group) -> None:
        """End the parent run. Its status follows from the last attempt of each stage."""
        parent = self._parent(group)
        children = self._search(self._experiment(group.experiment), PARENT, parent)
        latest = {run.data.tags[STAGE]: run for run in reversed(children)}  # newest come first
        stages = sorted(latest.values(), key=lambda run: run.info.start_time)
        states = [run.info.status for run in stages]
        state = next((s for s in ("FAILED", "KILLED") if s in states), "FINISHED")
        ends = [run.info.end_time for run in stages if run.info.end_time]
        note = mlflow_notes.of_pipeline(stages, self.destination.registered(group.id))
        self.client.set_tag(parent, NOTE, note)
        self.client.set_terminated(parent, state, max(ends, default=_now()))

    def _open_run(self, file: Path) -> OpenStageRun | None:
        """The MLflow run of a file in the outbox, created unless an earlier sender did."""
        events, _ = read_events(file, 0)
        if events and events[0]["event"] != "start":
            raise ValueError(f"{file.name} does not begin with the start of a stage run")
        if not events:
            if _now() - file.stat().st_mtime * 1000 > 10_000:  # killed before its first event
                file.unlink()
            return None
        start = events[0]
        group = Group.of(start["group"])
        if not (self.destination.outbox / f"{group.id}.group").exists():  # it was broken
            group.write(self.destination.outbox)
        experiment, parent = self._experiment(group.experiment), self._parent(group)
        found = self._search(experiment, RUN, file.stem)
        if found:
            run_id, sent = found[0].info.run_id, int(found[0].data.tags.get(SENT, 0))
        else:
            tags = {
                RUN: file.stem,
                PARENT: parent,
                STAGE: start["stage"],
                **source_tags(group.user, start["command"]),
            }
            run_id = self._create(experiment, start["stage"], start["time"], tags)
            sent = 0
        open_run = self.open_run[file] = OpenStageRun(run_id, parent, start, sent)
        if not sent:
            self._log_start(open_run)
        return open_run

    def _log_start(self, open_run: OpenStageRun) -> None:
        start = open_run.start
        for run_id in (open_run.run_id, open_run.parent_id):
            known = self.client.get_run(run_id).data.params  # MLflow refuses to change them
            params = [
                Param(allowed_name(key), value[:PARAM_LENGTH])
                for key, value in start["params"].items()
                if allowed_name(key) not in known
            ]
            for batch in batches(params, PARAMS):
                self.client.log_batch(run_id, params=batch)
        datasets, tags = [], []
        for name, source in start["inputs"].items():
            tags.append(RunTag(f"input.{name}", f"{source['digest'][:12]} {source['path']}"))
            if source["kind"] == "dataset":
                context = CONTEXTS.get(start["stage"], "reading")
                datasets.append(dataset_input(name, source, context))
        for path, digest in start["files"].items():
            if path == start["params"].get("data.folder"):
                source = {"digest": digest, "path": path, "figures": {}}
                datasets.append(dataset_input(Path(path).name, source, "raw data"))
        self.client.log_batch(open_run.run_id, tags=tags)
        self.client.log_inputs(open_run.run_id, datasets)
        self.client.log_inputs(open_run.parent_id, datasets)

    def _log_points(self, open_run: OpenStageRun, events: Iterable[Mapping[str, Any]]) -> None:
        """Send metrics of a stage that runs.

        MLflow cannot deduplicate NaN and infinities, so the first one is named in a tag instead.
        """
        points, broken = [], []
        for event in events:
            for name, (value, step) in event.get("metrics", {}).items():
                if math.isfinite(value):
                    points.append(Metric(allowed_name(name), value, event["time"], step))
                else:
                    broken.append(f"{name} is {value} at step {step}")
        for batch in batches(points, METRICS):
            self.client.log_batch(open_run.run_id, metrics=batch)
        if broken:
            self.client.set_tag(open_run.run_id, "not_finite", broken[0])

    def _finish(self, file: Path, open_run: OpenStageRun, end: Mapping[str, Any]) -> None:
        run_id, parent, stage = open_run.run_id, open_run.parent_id, open_run.start["stage"]
        figures = {k: v for k, (v, _) in end.get("metrics", {}).items() if math.isfinite(v)}
        shown = mlflow_notes.figures_of(stage, figures, reused=end.get("reused", False))
        self.client.log_batch(
            parent,
            metrics=[Metric(allowed_name(name), value, end["time"], 0) for name, value in shown],
            tags=[RunTag(k, v) for k, v in commit_tags(end).items()],
        )
        tags = {**artifact_tags(end), **commit_tags(end), NOTE: mlflow_notes.of_stage(stage, end)}
        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        files = file.with_suffix(".files")
        if files.is_dir():
            self.client.log_artifacts(run_id, str(files))
            for plot in files.rglob("*.png"):
                self.client.log_artifact(parent, str(plot), "plots")
        if end.get("path") and open_run.start["upload_weights"] and not end["reused"]:
            self._upload(run_id, self.destination.base / end["path"], end["digest"])
        if end.get("kind") == "registration" and not end["reused"]:
            self._register(run_id, files, open_run.start["group"]["id"])
        self.client.set_terminated(run_id, end["status"], end["time"])

    def _register(self, run_id: str, files: Path, group: str) -> None:
        """Register the model, if the request was copied when the stage ended."""
        if not (files / mlflow_registry.REQUEST).is_file():
            again = "remove artifacts/register and run stage=register again"
            self.client.set_tag(run_id, "registered", f"no: the request was not copied: {again}")
            return
        result = mlflow_registry.register(self.client, run_id, files)
        result["group"] = group
        (self.destination.folder / "registered.json").write_text(json.dumps(result))

    def _upload(self, run_id: str, path: Path, digest: str) -> None:
        """Upload the artifact, unless another run has replaced it meanwhile."""
        try:
            whole = open_artifact(path).manifest.digest == digest
        except ArtifactError:
            whole = False
        if whole:
            self.client.log_artifacts(run_id, str(path), "artifact")
        else:
            self.client.set_tag(run_id, "artifact.uploaded", "no: replaced before it was sent")

    @contextmanager
    def _reject_refused(self, file: Path) -> Iterator[None]:
        """Retry once what MLflow refuses, since the store may be new; then move it to `rejected/`.

        Otherwise it would block all later runs.
        """
        try:
            yield
        except (MlflowException, AttributeError, LookupError, TypeError, ValueError) as error:
            if getattr(error, "error_code", "INVALID_STATE") not in REFUSALS:
                raise
            self.open_run.pop(file, None)
            self.experiments.clear()
            self.parents.clear()
            if file not in self.refused:
                self.refused.add(file)
                return
            trace = "".join(traceback.format_exception(error))
            write_error(f"{self.destination.uri} refused {file.name}:\n{trace}")
            for part in file.parent.glob(f"{file.stem}.*"):
                self.destination.reject(part)

    def _experiment(self, name: str) -> str:
        if name not in self.experiments:
            known = self.client.get_experiment_by_name(name)
            if known and known.lifecycle_stage == "deleted":
                self.client.restore_experiment(known.experiment_id)
            if known:
                self.experiments[name] = known.experiment_id
            else:
                root = self.destination.artifact_root
                location = (root / allowed_name(name)).as_uri() if root else None
                self.experiments[name] = self.client.create_experiment(
                    name, artifact_location=location
                )
                self._make_relative()
        return self.experiments[name]

    def _make_relative(self) -> None:
        """Rewrite the paths of an embedded store, which MLflow writes whole."""
        database = embedded_store(self.destination.artifacts)
        if self.destination.artifact_root and database.is_file():
            make_relative(database)

    def _parent(self, group: Group) -> str:
        if group.id not in self.parents:
            experiment = self._experiment(group.experiment)
            found = self._search(experiment, RUN, group.id)
            tags = {RUN: group.id, **source_tags(group.user, "python -m pipeline")}
            self.parents[group.id] = (
                found[0].info.run_id
                if found
                else self._create(experiment, group.name, int(group.created * 1000), tags)
            )
        return self.parents[group.id]

    def _create(self, experiment: str, name: str, begin: int, tags: dict[str, str]) -> str:
        run = self.client.create_run(experiment, start_time=begin, tags=tags, run_name=name)
        return run.info.run_id

    def _search(self, experiment: str, tag: str, value: str) -> list[Run]:
        return self.client.search_runs([experiment], f"tags.`{tag}` = '{value}'")


def _now() -> int:
    return int(time.time() * 1000)
