"""The engine of a registered version, found among the artifacts of earlier runs.

The registry names an engine by its digest. This module finds where it is now: in `artifacts/build`,
or among the variants that other settings or data made, or that were pulled (deployment/pull.py). It
does not import MLflow.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, kept, open_artifact
from pipeline.core.errors import PipelineError
from pipeline.tracking.outbox import Destination, embedded_store
from pipeline.tracking.registry_reader import ENGINE, alias_in, look_up

CHAMPION = "champion"


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
    """The version that is champion now. engine: digest. scores: by metric and slice, then by
    question, if it was registered with them."""

    version: int
    engine: str
    scores: Mapping[str, Mapping[str, float]]


def champion_of(config: Config) -> Champion | None:
    """The champion of the model that config.register names; None if there is none.

    Raises:
        PipelineError: the registry does not answer.
    """
    name = config.register_.name
    place = Destination.of(config.artifacts, config.tracking)
    if place.artifact_root:
        with suppress(PipelineError):  # locked, or of another version: MLflow itself is asked
            if alias_in(embedded_store(config.artifacts), name, CHAMPION) is None:
                return None
    answer = look_up(name, CHAMPION, place)
    if "version" not in answer:
        return None
    engine = answer["tags"].get(ENGINE, "")
    return Champion(answer["version"], engine, answer["scores"] or {})
