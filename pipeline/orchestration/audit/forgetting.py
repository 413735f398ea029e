"""Forgets a conversation: says where it is, removes it, marks versions, and plans what to retrain.

Artifacts are never changed: what was made from the conversation stays as it is until it is made
again without it, and removed. The plan says how.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import PipelineError
from pipeline.orchestration.audit import conversations
from pipeline.orchestration.audit.conversations import Found, InVersion
from pipeline.orchestration.audit.lineage import SHOWN, Lineage
from pipeline.orchestration.audit.lineage_words import wide_console
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import FORGOTTEN
from pipeline.tracking.registry_writer import registry_at

MOST_SHOWN = 20  # rows, or files, in a table
ORIGINS = {
    "snapshot": "snapshot", "recording": "recording", "feedback": "feedback", "file": "your file",
}  # fmt: skip


@dataclass(frozen=True)
class Done:
    """What forgetting did. listed: the list that keeps it out of datasets. changed: files that lost
    rows. marked: numbers of versions. plan: what is left to do, a line each. problems: what could
    not be done."""

    listed: Path
    changed: Sequence[Path] = ()
    marked: Sequence[int] = ()
    plan: Sequence[str] = ()
    problems: Sequence[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "forgotten": {
                "listed": str(self.listed),
                "changed": [str(file) for file in self.changed],
                "marked": list(self.marked),
                "plan": list(self.plan),
                "problems": list(self.problems),
            }
        }


def forget(found: Found, config: Config, lineage: Lineage) -> Done:
    """Do it. Nothing else may run in the folder of artifacts meanwhile.

    Raises:
        DataError, ResourceError: a file cannot be read or written.
    """
    listed, changed = conversations.forget(found, config)
    trained = [version for version in found.versions if version.trained]
    marked, problems = [], []
    try:
        marked = _mark(trained, config)
    except PipelineError as error:
        problems.append(f"the versions were not marked in the registry: {error}")
    return Done(listed, changed, marked, plan(found, config, lineage), problems)


def _mark(versions: Sequence[InVersion], config: Config) -> list[int]:
    if not versions:
        return []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    place = Destination.of(config.artifacts, config.tracking)
    with registry_at(place) as registry:
        for version in versions:
            text = f"{now}: trained on a conversation that is to be forgotten"
            registry.set_version_tag(config.register_.name, version.number, FORGOTTEN, text)
    return [version.number for version in versions]


def plan(found: Found, config: Config, lineage: Lineage) -> list[str]:
    """What is left to do, in order, a line each."""
    lines = []
    by_hand = [place for place in found.places if place.origin == "file"]
    if by_hand:
        names = ", ".join(place.name for place in by_hand[:3])
        more = f" and {len(by_hand) - 3} more" if len(by_hand) > 3 else ""
        lines.append(f"remove from your own files: {names}{more} (`prepare` leaves it out anyway)")
    if found.written:
        names = ", ".join(map(str, found.written))
        lines.append(f"run this again when the server has completed {names}")
    trained = sorted(
        (version for version in found.versions if version.trained),
        key=lambda version: ("champion" not in version.aliases, -version.number),
    )
    unknown = [version for version in found.versions if version.rows is None]
    if trained or found.datasets:
        lines.append(
            "retrain without it: python -m pipeline stage=all, with the settings of before"
        )
    if trained and "champion" in trained[0].aliases:
        lines.append(
            f"champion is {trained[0].title}: when the new version passed the gate and is not "
            "champion yet, run `stage=promote register.version=candidate`"
        )
    if trained:
        numbers = ", ".join(str(version.number) for version in trained)
        lines.append(f"serve none of the versions {numbers}, and delete them from the registry")
        if stores := _stores(trained, lineage):
            lines.append(f"remove their files from {', '.join(stores)}")
    if unknown:
        numbers = ", ".join(str(version.number) for version in unknown)
        lines.append(
            f"of the versions {numbers} nobody can tell, as their datasets are not here: treat "
            "them as trained on it"
        )
    if kept := conversations.datasets_after(lineage, found):
        lines.append(
            f"then run `stage=clean`: {len(kept)} artifacts were made from it, as {kept[0]}"
        )
    quoted = [file for file in found.quoted if not _is_in(file, kept)]
    if quoted:
        names = ", ".join(map(str, quoted[:3])) + (" …" if len(quoted) > 3 else "")
        lines.append(f"delete the runs in MLflow, or the reports, that quote it: {names}")
    return lines


def _stores(versions: Sequence[InVersion], lineage: Lineage) -> list[str]:
    nodes = [lineage.nodes[f"version {version.number}"] for version in versions]
    return list(dict.fromkeys(str(n.facts["store"]) for n in nodes if n.facts.get("store")))


def _is_in(file: Path, folders: Sequence[str]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


def question(found: Found) -> str:
    """What a person is asked before anything is removed."""
    rows, files = found.removable, {place.file for place in found.removable}
    trained = sum(version.trained for version in found.versions)
    parts = [f"{len(rows)} rows of {len(files)} files will be removed"]
    parts.append("later datasets will refuse the conversation")
    if trained:
        parts.append(f"{trained} versions will be marked")
    return f"{'; '.join(parts)}. Forget it?"


def as_json(found: Found) -> dict[str, Any]:
    return {
        "schema": 1,
        "rows": [
            {
                "file": str(place.file),
                "line": place.line,
                "origin": place.origin,
                "part": place.is_part,
                "text": place.text,
            }
            for place in found.places
        ],
        "datasets": [
            {"digest": each.digest, "places": list(each.artifact),
             "rows": {split: list(rows) for split, rows in each.rows.items()}}
            for each in found.datasets
        ],
        "versions": [
            {
                "version": version.number,
                "aliases": list(version.aliases),
                "dataset": version.dataset,
                "trained": None if version.rows is None else version.trained,
                "rows": version.rows,
            }
            for version in found.versions
        ],
        "being_written": [str(file) for file in found.written],
        "quoted_in": [str(file) for file in found.quoted],
        "notes": list(found.notes),
    }  # fmt: skip


def show(found: Found) -> None:
    """Print to standard output where it is."""
    console = wide_console()
    rows = [
        (
            place.name,
            ORIGINS[place.origin] + (", a part of it" if place.is_part else ""),
            place.text,
        )
        for place in found.places
    ]
    _table(console, "rows of files", rows)
    _table(
        console,
        "datasets",
        [
            (
                f"prepare {each.digest[:SHOWN]}",
                ", ".join(f"{split}: {len(found_)}" for split, found_ in each.rows.items()),
                each.artifact[0],
            )
            for each in found.datasets
        ],
    )
    _table(console, "versions", [(v.title, _seen(v)) for v in found.versions])
    _table(console, "reports that quote it", [(str(file),) for file in found.quoted])
    for note in found.notes:
        get_console().print(note, soft_wrap=True, markup=False)


def _seen(version: InVersion) -> str:
    """What a version has seen of it, in words."""
    if version.rows is None:
        dataset = f"dataset {version.dataset[:SHOWN]}" if version.dataset else "dataset"
        return f"cannot be told: its {dataset} is not here"
    if not version.rows:
        return "has not seen it"
    words = {"train": "trained on", "validation": "validated on", "test": "evaluated with"}
    counted = (
        f"{words[split]} {count} row{'s' * (count != 1)}" for split, count in version.rows.items()
    )
    return ", ".join(counted)


def _table(console: Any, title: str, rows: Sequence[Sequence[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"\n{title}", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for place in range(len(rows[0]) if rows else 0):
        table.add_column(no_wrap=place == 0, overflow="fold")
    for row in rows[:MOST_SHOWN]:
        table.add_row(f"  {escape(row[0])}", *map(escape, row[1:]))
    console.print(table if rows else "  none")
    if len(rows) > MOST_SHOWN:
        console.print(f"  and {len(rows) - MOST_SHOWN} more (lineage.format=json lists all)")


def show_done(done: Done) -> None:
    """Print to standard output what was done, and what is left to do."""
    console = wide_console()
    console.print("\nforgotten", style="bold")
    lines = [f"listed in {done.listed}: no later dataset takes it"]
    lines += [f"removed from {file}" for file in done.changed]
    if done.marked:
        numbers = ", ".join(map(str, done.marked))
        lines.append(f"marked in the registry (tag {FORGOTTEN}): version {numbers}")
    for line in [*lines, *done.problems]:
        console.print(f"  {line}", markup=False)
    console.print("\nleft to do", style="bold")
    for number, line in enumerate(done.plan, 1):
        console.print(f"  {number}. {line}", markup=False)
    if not done.plan:
        console.print("  nothing: no dataset holds it")
