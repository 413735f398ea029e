"""The engine of a version in the registry, found again among what earlier runs left.

    found = engine_of("champion", config)    # found.artifact.path is an engine's folder

The registry names what it holds by digest; where that is now, `artifacts/build` or a variant that
other settings or data made, is looked for here. Knows nothing of MLflow.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, kept, open_artifact
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.core.paths import ROOT
from pipeline.tracking.outbox import Destination, embedded_store, mask

_LOOK_UP = "pipeline.tracking.mlflow_versions"
_LOOK_UP_SECONDS = 120


@dataclass(frozen=True)
class Registered:
    """A registered version and its engine. aliases: as champion, if it has any."""

    artifact: Artifact
    version: int
    aliases: tuple[str, ...]

    @property
    def title(self) -> str:
        """As in "version 3 (champion)"."""
        names = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"version {self.version}{names}"


def engine_of(version: str | int, config: Config) -> Registered:
    """The engine of a version of config.register's model, whole and unaltered.

    version: its number or one of its aliases.

    Raises:
        ArtifactError: there is no such version, or its engine is not here any more.
        PipelineError: the registry cannot be asked.
    """
    name = config.register_.name
    answer = _look_up(name, version, config)
    if "version" not in answer:
        raise ArtifactError(answer["missing"])
    digest = answer["tags"].get("digest.build", "")
    for folder, manifest in kept(config.artifacts, "build"):
        if manifest.digest == digest:
            engine = open_artifact(folder, stage="build").require("engine")
            return Registered(engine, answer["version"], tuple(answer["aliases"]))
    raise ArtifactError(
        f"version {answer['version']} of {name} is engine {digest[:12]}, which {config.artifacts} "
        "does not hold: run `stage=all` with the settings of its run in MLflow, or choose another"
    )


def _look_up(name: str, version: str | int, config: Config) -> Mapping[str, Any]:
    """What the registry says, asked in a process of its own: MLflow takes seconds to import and
    more memory than a server."""
    place = Destination.of(config.artifacts, config.tracking)
    if place.artifact_root and not embedded_store(config.artifacts).is_file():
        where = f"the registry below {config.artifacts}"
        return {"missing": f"{where} has no version of {name} yet: `stage=all` makes one"}
    command = [sys.executable, "-m", _LOOK_UP, name, str(version)]
    try:
        answer = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "MLFLOW_TRACKING_URI": place.uri},
            capture_output=True, text=True, timeout=_LOOK_UP_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PipelineError(
            f"{mask(place.uri)} did not answer within {_LOOK_UP_SECONDS} s: without serve.version "
            "what was built last is served"
        ) from None
    if answer.returncode:
        why = mask((answer.stderr.strip().splitlines() or ["no reason was given"])[-1])
        raise PipelineError(
            f"the registry at {mask(place.uri)} cannot be asked ({why}): without serve.version "
            "what was built last is served"
        )
    found: Mapping[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found
