"""The stages of the graph with made artifacts, for the harnesses that break their commits."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.core.artifact import VARIANTS, VERIFIED, open_artifact
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.core.stage import stage_module
from pipeline.orchestration import compose
from pipeline.orchestration.graph import declared_stages
from pipeline.tracking.outbox import Destination
from tests.made_artifacts import make_artifact, make_chain
from tests.replayed_stage import GRAPH, start

CODES = {error.exit_code for error in PipelineError.__subclasses__()} | {0, 1, 130}
MANY = {"files": 12, "bytes": 20_000}  # of each made artifact, beside its own


class Ended(NamedTuple):
    """code: exit code, or minus a signal's number. said: on standard error."""

    code: int
    said: str


@dataclass
class Counts:
    """What a harness reports. Each list must stay empty.

    runs: of stages that were broken. tracebacks: runs that showed one. silent: runs that failed
    without a line, or with an exit code that is not documented. lost: what a later run with
    nothing in its way did not make or keep.
    """

    runs: int = 0
    broken: int = 0
    tracebacks: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        return [*self.tracebacks, *self.silent, *self.lost]

    def __str__(self) -> str:
        return (
            f"{self.runs} runs, {self.broken} of them broken off: {len(self.tracebacks)} "
            f"tracebacks, {len(self.silent)} silent, {len(self.lost)} lost"
        )

    def tell(self, what: str) -> None:
        """Print how far a harness is, and what it found so far."""
        print(f"{what}: {self}", flush=True)

    def see(self, what: str, done: Ended, *, most_lines: int = 1) -> None:
        """Count a run that was broken off, and read what it said: a line for the command, and one
        for each stage that it started."""
        self.runs += 1
        self.broken += done.code != 0
        if "Traceback" in done.said:
            self.tracebacks.append(f"{what}: {done.said}")
        if done.code < 0:
            return  # a signal ended it, and it could not say anything
        lines = [line for line in done.said.splitlines() if line.startswith("pipeline: ")]
        said = 1 <= len(lines) <= most_lines or done.code == 0
        if not said or done.code not in CODES:
            self.silent.append(f"{what}: exit code {done.code}: {done.said}")


class ReplayedChain:
    """Made artifacts of every stage, and projects in which one stage is to be made again."""

    def __init__(self, folder: Path) -> None:
        """folder: on a disk with room; holds what stages copy."""
        self.made = folder / "made"
        self.tree = compose.compose([])
        for name in declared_stages():
            stage_module(name)
        make_chain(self.made)
        evaluate = {"evaluate": open_artifact(self.made / "evaluate")}
        make_artifact(self.made, "register", "registration", inputs=evaluate)
        make_artifact(self.made, "index", "index")
        for stage in self.stages:
            path = self.made / stage
            content = {f"more/{n}.bin": bytes([n]) * MANY["bytes"] for n in range(MANY["files"])}
            old = open_artifact(path)
            kept = {name: (path / name).read_bytes() for name in old.manifest.files}
            make_artifact(self.made, stage, old.kind, files={**kept, **content},
                          metrics=old.manifest.metrics, proof=old.manifest.proof)  # fmt: skip

    @property
    def stages(self) -> list[str]:
        return declared_stages()

    def prepare(self, stage: str, artifacts: Path) -> None:
        """What the stage reads, and an older artifact of its own, which it moves aside."""
        for name in (*GRAPH[stage].inputs, stage):
            shutil.copytree(self.made / name, artifacts / name)

    def run(
        self, stage: str, artifacts: Path, how: str = "plain",
        limit: Callable[[], None] | None = None,
    ) -> Ended:  # fmt: skip
        return self.wait(*self.start(stage, artifacts, how, limit))

    def start(
        self, stage: str, artifacts: Path, how: str, limit: Callable[[], None] | None = None
    ) -> tuple[int, int]:
        """Its pid, and a pipe with what it says."""
        tree = {**self.tree, "artifacts": str(artifacts)}
        return start(self.made / stage, how, tree, limit)

    def wait(self, pid: int, said: int) -> Ended:
        with os.fdopen(said, errors="replace") as stream:
            text = stream.read()
        _, status = os.waitpid(pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), text)

    def check(self, what: str, stage: str, artifacts: Path, counts: Counts) -> None:
        """Run the stage with nothing in its way, and count what it lost."""
        done = self.run(stage, artifacts)
        if "Traceback" in done.said:
            counts.tracebacks.append(f"{what}, then a plain run: {done.said}")
        elif done.code:
            counts.lost.append(f"{what}, then a plain run: {done.code}: {done.said}")
        else:
            counts.lost += [f"{what}: {lost}" for lost in self._lost(stage, artifacts)]

    def _lost(self, stage: str, artifacts: Path) -> list[str]:
        made = open_artifact(self.made / stage).manifest
        older = artifacts / VARIANTS / f"{stage}-{made.fingerprint[:16]}"
        lost = []
        for path in (artifacts / stage, older):
            try:
                found = open_artifact(path, stage=stage, reread=True).manifest
            except ArtifactError as error:
                lost.append(str(error))
                continue
            if found.files != made.files:
                lost.append(f"{path} holds other files")
        if left := [p for p in (artifacts / ".work").glob("*") if p.name != VERIFIED]:
            lost.append(f"{left[0]} is left")
        if (artifacts / ".tracking").is_dir():
            destination = Destination.of(artifacts)
            if len(list(destination.groups())) < 1 or not destination.runs():
                lost.append("no run is in the outbox")
        return lost
