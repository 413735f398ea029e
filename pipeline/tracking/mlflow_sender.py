"""What the spool says, as runs in MLflow: one parent a pipeline run, one nested run a stage run.

May be killed at any time. How far a stage run was sent stands in its MLflow run (a hidden tag),
every run is looked for before it is created, and a point that is sent twice is one point to MLflow;
so the next sender goes on, without losing or doubling anything. Knows nothing of stages but what
the spool says of them.
"""

import json
import math
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipeline.core.artifact import open_artifact
from pipeline.core.errors import ArtifactError
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
from pipeline.tracking.outbox import Destination, Group, Owner, mask, read_events

# Tags that begin with "mlflow." are not shown.
SENT, RUN, STAGE = "mlflow.pipeline.sent", "mlflow.pipeline.run", "mlflow.pipeline.stage"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
CONTEXTS = {"finetune": "training", "quantize": "calibration", "evaluate": "evaluation"}
# In batches of over 100 metrics MLflow's SQL store fails on points that it has already.
METRICS, PARAMS = 100, 100  # of a batch
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


@dataclass
class Sending:
    """A stage run that is being sent: its run in MLflow, and the bytes of the spool file sent."""

    run_id: str
    parent_id: str
    start: Mapping[str, Any]
    sent: int


class Sender:
    """Sends one destination's spool with one client."""

    def __init__(self, place: Destination):
        if place.artifact_root:  # the folder of the database too
            place.artifact_root.mkdir(parents=True, exist_ok=True)
        upgrade_store(place.uri)
        self.place = place
        mlflow.set_tracking_uri(place.uri)  # the registry's client looks models up there
        self.client = MlflowClient()
        self.sending: dict[Path, Sending] = {}
        self.experiments: dict[str, str] = {}
        self.parents: dict[str, str] = {}
        self.refused: set[Path] = set()

    def send_all(self) -> bool:
        """Send what the spool holds now. Returns whether more can come."""
        groups = [(group, group.is_open()) for group in self.place.groups()]
        for file in self.place.runs():
            with self._or_refuse(file):
                self.send(file)
        self._remove_files_of_sent()
        for group, is_open in groups:
            if not is_open and not self.place.runs_of(group.id):
                file = self.place.spool / f"{group.id}.group"
                with self._or_refuse(file):
                    self.close(group)
                    file.unlink()
        return not self.place.is_empty()

    def send(self, file: Path) -> None:
        """Send the lines that were added to a stage run's file, and remove it after the last."""
        sending = self.sending.get(file) or self._open(file)
        if not sending:
            return
        # Asked before reading: what a dead process wrote is all it will.
        was_alive = Owner(**sending.start["owner"]).is_alive()
        events, end = read_events(file, sending.sent)
        self._log_points(sending, events)
        last: dict[str, Any] = next((e for e in events if e["event"] == "finish"), {})
        if not last and not was_alive:
            written = int(file.stat().st_mtime * 1000)
            last = {"status": "KILLED", "time": written, "error": "the process was killed"}
        if last:
            self._finish(file, sending, last)
            file.unlink()  # before its files: while it is there, they are needed
            self.sending.pop(file)
        elif end > sending.sent:
            self.client.set_tag(sending.run_id, SENT, str(end))
            sending.sent = end

    def _remove_files_of_sent(self) -> None:
        for folder in self.place.spool.glob("*.files"):
            if not folder.with_suffix(".jsonl").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def close(self, group: Group) -> None:
        """End the parent run: its state is that of its stages' last attempts."""
        parent = self._parent(group)
        children = self._search(self._experiment(group.experiment), PARENT, parent)
        latest = {run.data.tags[STAGE]: run for run in reversed(children)}  # newest come first
        stages = sorted(latest.values(), key=lambda run: run.info.start_time)
        states = [run.info.status for run in stages]
        state = next((s for s in ("FAILED", "KILLED") if s in states), "FINISHED")
        ends = [run.info.end_time for run in stages if run.info.end_time]
        note = mlflow_notes.of_pipeline(stages, self.place.registered(group.id))
        self.client.set_tag(parent, NOTE, note)
        self.client.set_terminated(parent, state, max(ends, default=_now()))

    def _open(self, file: Path) -> Sending | None:
        """The MLflow run of a spool file, created unless an earlier sender did."""
        events, _ = read_events(file, 0)
        if not events:
            if _now() - file.stat().st_mtime * 1000 > 10_000:  # killed in its first line
                file.unlink()
            return None
        start = events[0]
        group = Group.of(start["group"])
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
        sending = self.sending[file] = Sending(run_id, parent, start, sent)
        if not sent:
            self._log_start(sending)
        return sending

    def _log_start(self, sending: Sending) -> None:
        start = sending.start
        for run_id in (sending.run_id, sending.parent_id):
            known = self.client.get_run(run_id).data.params  # a second value is refused
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
        self.client.log_batch(sending.run_id, tags=tags)
        self.client.log_inputs(sending.run_id, datasets)
        self.client.log_inputs(sending.parent_id, datasets)

    def _log_points(self, sending: Sending, events: Iterable[Mapping[str, Any]]) -> None:
        """Live figures. NaN and infinities, which MLflow cannot tell apart when sent twice, are
        named in a tag instead."""
        points, broken = [], []
        for event in events:
            for name, (value, step) in event.get("metrics", {}).items():
                if math.isfinite(value):
                    points.append(Metric(allowed_name(name), value, event["time"], step))
                else:
                    broken.append(f"{name} is {value} at step {step}")
        for batch in batches(points, METRICS):
            self.client.log_batch(sending.run_id, metrics=batch)
        if broken:
            self.client.set_tag(sending.run_id, "not_finite", broken[0])

    def _finish(self, file: Path, sending: Sending, end: Mapping[str, Any]) -> None:
        run_id, parent, stage = sending.run_id, sending.parent_id, sending.start["stage"]
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
        if end.get("path") and sending.start["upload_weights"] and not end["reused"]:
            self._upload(run_id, Path(end["path"]), end["digest"])
        if end.get("kind") == "registration" and not end["reused"]:
            self._register(run_id, files, sending.start["group"]["id"])
        self.client.set_terminated(run_id, end["status"], end["time"])

    def _register(self, run_id: str, files: Path, group: str) -> None:
        """Ask the registry, if the request could be kept when the stage ended."""
        if not (files / mlflow_registry.REQUEST).is_file():
            again = "remove artifacts/register and run stage=register again"
            self.client.set_tag(run_id, "registered", f"no: the request was not kept: {again}")
            return
        answer = mlflow_registry.register(self.client, run_id, files)
        answer["group"] = group
        (self.place.folder / "registered.json").write_text(json.dumps(answer))

    def _upload(self, run_id: str, path: Path, digest: str) -> None:
        """The whole artifact, unless another run has replaced it meanwhile."""
        try:
            whole = open_artifact(path).manifest.digest == digest
        except ArtifactError:
            whole = False
        if whole:
            self.client.log_artifacts(run_id, str(path), "artifact")
        else:
            self.client.set_tag(run_id, "artifact.uploaded", "no: replaced before it was sent")

    @contextmanager
    def _or_refuse(self, file: Path) -> Iterator[None]:
        """What MLflow refuses is tried once more, for the store may be a new one, then put aside;
        else it would hold up the rest for ever."""
        try:
            yield
        except (MlflowException, LookupError, TypeError, ValueError) as error:
            if getattr(error, "error_code", "INVALID_STATE") not in REFUSALS:
                raise
            self.sending.pop(file, None)
            self.experiments.clear()
            self.parents.clear()
            if file not in self.refused:
                self.refused.add(file)
                return
            print(f"{file.name} is refused by {mask(self.place.uri)}:", file=sys.stderr)
            traceback.print_exception(error)
            aside = self.place.folder / "rejected"
            aside.mkdir(exist_ok=True)
            for part in file.parent.glob(f"{file.stem}.*"):
                part.rename(aside / part.name)

    def _experiment(self, name: str) -> str:
        if name not in self.experiments:
            known = self.client.get_experiment_by_name(name)
            if known and known.lifecycle_stage == "deleted":
                self.client.restore_experiment(known.experiment_id)
            root = self.place.artifact_root
            self.experiments[name] = (
                known.experiment_id
                if known
                else self.client.create_experiment(
                    name, artifact_location=(root / allowed_name(name)).as_uri() if root else None
                )
            )
        return self.experiments[name]

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
