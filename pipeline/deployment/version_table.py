"""The table of stage=versions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Literal

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError
from pipeline.evaluation.metrics import METRICS
from pipeline.tracking.champion_changes import Change, history
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import (
    BYTES,
    RUNNING,
    RUNTIME,
    STORE,
    TRAINED,
    Version,
    missing,
    read_versions,
)
from pipeline.tracking.registry_writer import registry_at

MOST_CHANGES = 10
FILE_WIDTH = 250  # characters of a line, where no terminal bounds them
STALE_SECONDS = 15 * 60  # after which a server that says nothing runs no more


def show(config: Config) -> None:
    """Print the versions and the latest changes of champion."""
    from rich.table import Table

    place, name = Destination.of(config.artifacts, config.tracking), config.register_.name
    versions = read_versions(name, place)
    if not versions:
        raise ArtifactError(missing(name, "", [], {}))
    with registry_at(place) as registry:
        changes = history(registry, name)
    table = Table(title=name, title_justify="left", box=None, pad_edge=False)
    headings = ("version", "alias", "trained", "score", "engine", "MiB", "files",
                "runs at")  # fmt: skip
    for heading in headings:
        side: Literal["left", "right"] = "right" if heading in ("version", "MiB") else "left"
        table.add_column(heading, justify=side, overflow="fold")
    for version in versions:
        table.add_row(*row(version))
    console = get_console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(table, markup=False)
    for line in change_lines(changes[-MOST_CHANGES:]):
        console.print(line, soft_wrap=True, markup=False)


def row(version: Version, now: float | None = None) -> Sequence[str]:
    """The cells of a version. now: seconds since 1970."""
    tags = version.tags
    # The metric that ranked models when the version was registered.
    scores = [f"{m.text(float(tags[n]))} {m.title}" for n, m in METRICS.items() if n in tags]
    served = scores[0] if scores else ""
    if tags.get("gate") == "failed":
        served += " (gate failed)"
    engine = json.loads(tags[RUNTIME]) if RUNTIME in tags else {}
    built = f"{engine['runtime']} {engine['precision']}" if engine else tags.get("measured", "")
    where = ", ".join(str(value) for value in engine.get("hardware", {}).values())
    size = f"{int(tags[BYTES]) / 2**20:,.1f}" if BYTES in tags else ""
    return (
        str(version.number),
        ", ".join(version.aliases),
        ", ".join(filter(None, (tags.get(TRAINED, ""), version.forgotten))),
        served,
        f"{built} for {where}" if where else built,
        size,
        tags.get(STORE, "where it was built"),
        ", ".join(servers(version, now or time.time())),
    )


def servers(version: Version, now: float) -> list[str]:
    """The servers that run a version, as they last said."""
    found = []
    for key, value in version.tags.items():
        if key.startswith(RUNNING) and value.isdigit() and now - int(value) < STALE_SECONDS:
            found.append(key.removeprefix(RUNNING))
    return sorted(found)


def change_lines(changes: Sequence[Change]) -> list[str]:
    """One line for each change of champion, the newest first."""
    lines = []
    for change in reversed(changes):
        moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(change.time / 1000))
        was = f" (was {change.before})" if change.before else ""
        why = f": {change.why}" if change.why else ""
        gate = f"; gate overruled: {change.overruled}" if change.overruled else ""
        lines.append(
            f"{moment}  champion is version {change.version}{was}, {change.kind} by {change.who}"
            f"{why}{gate}"
        )
    return lines
