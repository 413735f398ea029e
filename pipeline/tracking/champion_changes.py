"""Moves the alias champion, and keeps who moved it, when and why.

Each change is a tag of the registered model, which nobody overwrites: `change.<time>.<version>`. So
the registry itself says what stage=rollback goes back to.
"""

import getpass
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.core.secrets import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
PREFIX = "change."
Kind = Literal["registered", "promoted", "rolled back"]


@dataclass(frozen=True)
class Change:
    """One move of champion. time: milliseconds since 1970. before: the version that it named; None
    if it named none. overruled: why a gate did not count; "" if it did."""

    time: int
    version: int
    before: int | None
    kind: Kind
    who: str
    why: str
    overruled: str = ""


class Registry(Protocol):
    """What is read and written of a registered model."""

    def aliases(self, name: str) -> Mapping[str, int]: ...

    def tags(self, name: str) -> Mapping[str, str]: ...

    def set_tag(self, name: str, key: str, value: str) -> None: ...

    def set_alias(self, name: str, alias: str, version: int) -> None: ...

    def set_version_tag(self, name: str, version: int, key: str, value: str) -> None: ...


class OfClient:
    """By MLflow's client."""

    def __init__(self, client: "MlflowClient") -> None:
        self._client = client

    def aliases(self, name: str) -> Mapping[str, int]:
        found = self._client.get_registered_model(name).aliases
        return {alias: int(version) for alias, version in found.items()}

    def tags(self, name: str) -> Mapping[str, str]:
        return dict(self._client.get_registered_model(name).tags)

    def set_tag(self, name: str, key: str, value: str) -> None:
        self._client.set_registered_model_tag(name, key, value)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self._client.set_registered_model_alias(name, alias, str(version))

    def set_version_tag(self, name: str, version: int, key: str, value: str) -> None:
        self._client.set_model_version_tag(name, str(version), key, value)


def move_champion(
    registry: Registry,
    name: str,
    version: int,
    *,
    kind: Kind,
    why: str,
    overruled: str = "",
    now: int | None = None,
) -> Change | None:
    """Make a version champion, and record it; None if it is champion already.

    now: milliseconds since 1970, by which a change that is recorded twice is the same change.
    """
    before = registry.aliases(name).get(CHAMPION)
    if before == version:
        return None
    moment = now or time.time_ns() // 1_000_000
    change = Change(moment, version, before, kind, _who(), mask(why), mask(overruled))
    # The record comes first: a process that is killed between the two has moved nothing.
    registry.set_tag(name, f"{PREFIX}{moment:013d}.{version}", json.dumps(asdict(change)))
    registry.set_alias(name, CHAMPION, version)
    return change


def history(registry: Registry, name: str) -> list[Change]:
    """Every recorded change, the oldest first. A tag of another writer is left out."""
    found = []
    for key, value in registry.tags(name).items():
        if key.startswith(PREFIX):
            try:
                found.append(Change(**json.loads(value)))
            except (ValueError, TypeError):
                continue
    return sorted(found, key=lambda change: (change.time, change.version))


def champion_before(changes: list[Change], champion: int) -> int | None:
    """The version that was champion before this one became it by registration or promotion; None
    if none was, or nobody recorded it.

    A rollback does not count: two of them go back by two versions.
    """
    for change in reversed(changes):
        if change.version == champion and change.kind != "rolled back":
            return change.before
    return None


def _who() -> str:
    """The user as the registry's server knows them, else as this machine does."""
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return user
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
