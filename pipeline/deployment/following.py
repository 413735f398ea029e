"""What a server follows: an alias of MLflow's registry, and where its versions' engines are."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.deployment.pull import Registered, engine_of_version, find_version
from pipeline.serving.versions import Release, ServedVersion
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import RUNNING, Version, number_of
from pipeline.tracking.registry_writer import registry_at

KNOWN = ".followed"  # below the artifacts: the versions that servers served last


class FollowedAlias:
    """An alias of the model that config.register names (pipeline/serving/versions.py)."""

    def __init__(self, config: Config, alias: str) -> None:
        self.name, self.alias = config.register_.name, alias
        self._config = config
        self._place = Destination.of(config.artifacts, config.tracking)
        self._told: int | None = None

    def look(self) -> int | None:
        return number_of(self.name, self.alias, self._place)

    def fetch(self, number: int) -> Release:
        return release_of(engine_of_version(find_version(number, self._config), self._config))

    def first(self) -> Registered:
        """The version to begin with.

        If the registry does not answer, it is the one that was served last in this folder: a
        registry that is down must not keep a server from starting again.

        Raises:
            ArtifactError: the alias names no version, or its engine cannot be had. PipelineError:
            the registry does not answer, and none was served here before.
        """
        try:
            found = engine_of_version(find_version(self.alias, self._config), self._config)
        except ArtifactError:
            raise
        except PipelineError as error:
            last = self._last()
            if last is None:
                raise
            get_console().print(
                f"[yellow]warning[/] {error}; version {last.number} is served, which was "
                f"{self.alias} last",
                soft_wrap=True,
            )
            found = engine_of_version(last, self._config)
        self._remember(found.version)
        return found

    def tell(self, number: int | None, address: str) -> None:
        """Note at the version in the registry that a server runs it, and at none that it ran."""
        if number is not None:
            with suppress(PipelineError):
                self._remember(find_version(number, self._config))
        with suppress(Exception):  # a registry that may only be read
            with registry_at(self._place) as registry:
                if self._told not in (None, number):
                    registry.set_version_tag(self.name, self._told, RUNNING + address, "0")
                if number is not None:
                    now = str(int(time.time()))
                    registry.set_version_tag(self.name, number, RUNNING + address, now)
            self._told = number

    @property
    def _file(self) -> Path:
        return self._config.artifacts / KNOWN / f"{self.name}.{self.alias}.json"

    def _remember(self, version: Version) -> None:
        with suppress(OSError):  # a read-only folder
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(json.dumps(asdict(version)))
            temporary.replace(self._file)

    def _last(self) -> Version | None:
        try:
            found = Version(**json.loads(self._file.read_text()))
            return Version(found.name, int(found.number), tuple(found.aliases), dict(found.tags))
        except (OSError, ValueError, TypeError):
            return None


def release_of(found: Registered) -> Release:
    version = found.version
    return Release(found.artifact.path, ServedVersion(version.name, version.number, version.engine))
