"""Fetch the files of a registered version from the store that it was pushed to.

    found = engine_of("champion", config)        # from here, or pulled; found.artifact.path
    pull_version("champion", "merge", config, Path("/models/bank"))

Imports neither MLflow nor an engine's library.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.artifact import VARIANTS, Artifact
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.deployment.store.places import open_store
from pipeline.deployment.store.transfer import pull, read_bundle
from pipeline.engines.description import Description
from pipeline.engines.registered import engine_with
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import (
    BUNDLE,
    RUNTIME,
    STORE,
    Version,
    number_of,
    read_version,
)


@dataclass(frozen=True)
class Registered:
    """A registered version and its engine."""

    artifact: Artifact
    version: Version


def find_version(wanted: str | int, config: Config) -> Version:
    """A version of the model that config.register names, by number or alias.

    Raises:
        ArtifactError: there is no such version. PipelineError: the registry does not answer.
    """
    place = Destination.of(config.artifacts, config.tracking)
    return read_version(config.register_.name, wanted, place)


def engine_of(wanted: str | int, config: Config) -> Registered:
    """The engine of a version, verified; pulled if it is not among the artifacts.

    Raises:
        ArtifactError: there is no such version, its engine is for another machine, or it is
        nowhere. PipelineError: the registry or the store does not answer.
    """
    return engine_of_version(find_version(wanted, config), config)


def engine_of_version(version: Version, config: Config) -> Registered:
    """The same, of a version that was found."""
    if here := engine_with(version.engine, config.artifacts):
        return Registered(here, version)
    require_runnable(version)
    return Registered(pull_version(version, "build", config).require("engine"), version)


def pull_version(
    version: Version, stage: str, config: Config, place: Path | None = None
) -> Artifact:
    """Fetch an artifact of a version.

    stage: that made it. place: the artifact's folder; None: among the variants, where engine_of()
    and the stages find it.

    Raises:
        ArtifactError: it was registered without a store, or arrives altered. ConfigError: the
        folder holds something else. ResourceError: the disk is full. PipelineError: the store
        cannot be used.
    """
    bundle = version.tags.get(BUNDLE)
    if not bundle:
        raise ArtifactError(
            f"version {version.number} of {version.name} is engine {version.engine[:12]}, which is "
            f"not in {config.artifacts}, and it was registered without register.store: run "
            "`stage=all` with the settings of its run in MLflow, or choose another version"
        )
    with closing(open_store(config.register_.store or version.tags[STORE], config)) as store:
        listed = read_bundle(store, bundle)
        digest = listed.artifacts[stage].digest if stage in listed.artifacts else ""
        target = place or config.artifacts / VARIANTS / f"{stage}-{digest[:16]}"
        return pull(store, listed, stage, target)


def require_runnable(version: Version) -> None:
    """Refuse, before a byte is fetched, an engine that cannot be opened here.

    Raises:
        ArtifactError: it was built for another runtime or other hardware.
    """
    from pipeline.engines.registry import ENGINES

    if not (text := version.tags.get(RUNTIME)):
        return
    description = Description(**json.loads(text))
    instead = (
        f"pull its checkpoint (`stage=pull register.version={version.number} pull.artifact=merge "
        "pull.to=DIR`) and serve that folder, or choose a version that was built for this machine"
    )
    if description.runtime not in ENGINES:
        raise ArtifactError(f"{version.title} needs the engine {description.runtime}: {instead}")
    record = ENGINES[description.runtime]
    description.require(version.title, record.version(), record.hardware(), instead)


def moved_meanwhile(wanted: str | int | None, version: Version, config: Config) -> str | None:
    """That an alias names another version now than when it was read; None if it does not."""
    if not isinstance(wanted, str) or wanted.isdigit():
        return None
    try:
        now = number_of(version.name, wanted, Destination.of(config.artifacts, config.tracking))
    except PipelineError:
        return None
    if now in (None, version.number):
        return None
    return f"{wanted} was moved to version {now} meanwhile: this is version {version.number}, whole"


def tell_if_moved(wanted: str | int | None, version: Version, config: Config) -> None:
    if text := moved_meanwhile(wanted, version, config):
        get_console().print(f"[yellow]{text}[/]", soft_wrap=True)
