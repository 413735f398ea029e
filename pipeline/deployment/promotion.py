"""Which version is champion, changed by hand: promote one, or go back to the one before."""

from __future__ import annotations

from pipeline.config.register import RegisterConfig
from pipeline.config.schema import Config
from pipeline.core.errors import ArtifactError, ConfigError, GateFailed
from pipeline.deployment.pull import find_version
from pipeline.tracking.champion_changes import (
    CHAMPION,
    Change,
    champion_before,
    history,
    move_champion,
)
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import Version
from pipeline.tracking.registry_writer import registry_at


def promote(config: Config) -> tuple[Version, Change | None]:
    """Make the version that register.version names champion.

    Returns:
        The version, and the change; None if it is champion already.

    Raises:
        GateFailed: it did not pass the gate, and register.overrule gives no reason. ConfigError: no
        version is given, or a reason to overrule a gate that it passed. ArtifactError: there is no
        such version. PipelineError: the registry does not answer.
    """
    settings = config.register_
    if settings.version is None:
        raise ConfigError("give register.version: a number, candidate or another alias")
    version = find_version(settings.version, config)
    require_promotable(version, settings)
    return version, promote_version(config, version, why=settings.reason or "")


def require_promotable(version: Version, settings: RegisterConfig) -> None:
    """
    Raises:
        GateFailed: it did not pass the gate, or was trained on a conversation that is to be
        forgotten, and register.overrule gives no reason. ConfigError: a reason to overrule a gate
        that it passed.
    """
    gate = version.tags.get("gate")
    if gate == "passed" and version.forgotten and not settings.overrule:
        raise GateFailed(
            f"{version.title} of {version.name} was {version.forgotten}: retrain (`stage=all`) and "
            'promote the new version; it becomes champion only with register.overrule="the reason"'
        )
    if gate == "passed" and settings.overrule and not version.forgotten:
        raise ConfigError(
            f"register.overrule has no effect: {version.title} passed the gate; say why in "
            "register.reason"
        )
    if gate != "passed" and not settings.overrule:
        why = version.tags.get(CHAMPION) or "stage=register did not make it"
        raise GateFailed(
            f"{version.title} of {version.name} has not passed the gate ({why}): it becomes "
            'champion only with a reason, as in register.overrule="the reason"'
        )


def promote_version(config: Config, version: Version, *, why: str) -> Change | None:
    """Make a version champion that may be so; None if it is champion already."""
    with registry_at(Destination.of(config.artifacts, config.tracking)) as registry:
        return move_champion(
            registry,
            version.name,
            version.number,
            kind="promoted",
            why=why,
            overruled=config.register_.overrule or "",
        )


def roll_back(config: Config) -> Change:
    """Make the version champion that was so before the present one.

    Raises:
        ArtifactError: there is no champion, or none before it is recorded. PipelineError: the
        registry does not answer.
    """
    name = config.register_.name
    now = find_version(CHAMPION, config)
    with registry_at(Destination.of(config.artifacts, config.tracking)) as registry:
        before = champion_before(history(registry, name), now.number)
        if before is None:
            raise ArtifactError(
                f"no champion of {name} before version {now.number} is recorded: name one, as in "
                "stage=promote register.version=1"
            )
        find_version(before, config)  # it may have been deleted since
        change = move_champion(
            registry, name, before, kind="rolled back", why=config.register_.reason or ""
        )
    if change is None:
        raise ArtifactError(f"champion of {name} was moved meanwhile: run stage=versions")
    return change


def words(name: str, change: Change) -> str:
    """A change in one line."""
    was = f"was version {change.before}" if change.before else "there was none"
    why = ": ".join(filter(None, [f"gate overruled: {change.overruled}" * bool(change.overruled),
                                  change.why]))  # fmt: skip
    return (
        f"version {change.version} of {name} is champion ({was}), {change.kind} by {change.who}"
        + (f": {why}" if why else "")
    )
