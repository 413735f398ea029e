"""The engine of a registered version, found among the artifacts of earlier runs.

    found = engine_of("champion", config)    # found.artifact.path is the engine's folder

The registry names an engine by its digest. This module finds where it is now: in `artifacts/build`,
or among the variants that other settings or data made. It does not import MLflow.
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, kept, open_artifact
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.core.paths import ROOT
from pipeline.core.secrets import mask
from pipeline.tracking.outbox import Destination, embedded_store

CHAMPION = "champion"
_LOOK_UP = "pipeline.tracking.mlflow_versions"
_LOOK_UP_SECONDS = 120


@dataclass(frozen=True)
class Registered:
    """A registered version and its engine. aliases: such as champion."""

    artifact: Artifact
    version: int
    aliases: tuple[str, ...]

    @property
    def title(self) -> str:
        """As in "version 3 (champion)"."""
        names = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"version {self.version}{names}"


def engine_of(version: str | int, config: Config) -> Registered:
    """The engine of a version of the model that config.register names, verified.

    version: a number or an alias.

    Raises:
        ArtifactError: there is no such version, or its engine is no longer here.
        PipelineError: the registry does not answer.
    """
    name = config.register_.name
    answer = _look_up(name, version, config)
    if "version" not in answer:
        raise ArtifactError(answer["missing"])
    digest = answer["tags"].get("digest.build", "")
    if engine := engine_with(digest, config.artifacts):
        return Registered(engine, answer["version"], tuple(answer["aliases"]))
    raise ArtifactError(
        f"version {answer['version']} of {name} is engine {digest[:12]}, which is not in "
        f"{config.artifacts}: run `stage=all` with the settings of its run in MLflow, or choose "
        "another version"
    )


def engine_with(digest: str, artifacts: Path) -> Artifact | None:
    """The built engine of this digest, verified; None if it is no longer here.

    Raises:
        ArtifactError: it was altered.
    """
    for folder, manifest in kept(artifacts, "build"):
        if manifest.digest == digest:
            return open_artifact(folder, stage="build").require("engine")
    return None


@dataclass(frozen=True)
class Champion:
    """The version that is champion now. engine: digest. scores: by question, if it was registered
    with them."""

    version: int
    engine: str
    scores: Mapping[str, float]


def champion_of(config: Config) -> Champion | None:
    """The champion of the model that config.register names; None if there is none.

    Raises:
        PipelineError: the registry does not answer.
    """
    name = config.register_.name
    place = Destination.of(config.artifacts, config.tracking)
    if place.artifact_root and not _has_alias(embedded_store(config.artifacts), name, CHAMPION):
        return None  # found out without importing MLflow
    answer = _look_up(name, CHAMPION, config)
    if "version" not in answer:
        return None
    engine = answer["tags"].get("digest.build", "")
    return Champion(answer["version"], engine, answer["scores"] or {})


def _has_alias(database: Path, name: str, alias: str) -> bool:
    """Whether an embedded store may have a version of this alias."""
    if not database.is_file():
        return False
    query = "SELECT 1 FROM registered_model_aliases WHERE name = ? AND alias = ?"
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
            return store.execute(query, (name, alias)).fetchone() is not None
    except sqlite3.Error:
        return True  # locked, or of another version of MLflow: MLflow itself is asked


def _look_up(name: str, version: str | int, config: Config) -> Mapping[str, Any]:
    """What the registry answers. A process of its own asks it: MLflow takes seconds to import, and
    more memory than a server."""
    place = Destination.of(config.artifacts, config.tracking)
    if place.artifact_root and not embedded_store(config.artifacts).is_file():
        where = f"the registry below {config.artifacts}"
        return {"missing": f"{where} has no version of {name} yet: run `stage=all`"}
    command = [sys.executable, "-m", _LOOK_UP, name, str(version)]
    if place.artifact_root:
        command.append(str(place.base))
    try:
        answer = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "MLFLOW_TRACKING_URI": place.uri},
            capture_output=True, text=True, timeout=_LOOK_UP_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PipelineError(
            f"{mask(place.uri)} did not answer within {_LOOK_UP_SECONDS} s: leave serve.version "
            "out to serve the engine in artifacts/build"
        ) from None
    if answer.returncode:
        why = mask((answer.stderr.strip().splitlines() or ["no reason was given"])[-1])
        raise PipelineError(
            f"the registry at {mask(place.uri)} does not answer ({why}): leave serve.version out "
            "to serve the engine in artifacts/build"
        )
    found: Mapping[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found
