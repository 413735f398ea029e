"""What lies below the artifacts and is not needed any more, and what it takes on the disk.

    found = find(config, lineage, registry_answers=True)
    remove([item for item in found if not item.keep])

The present artifacts, what they were made from, and what registered versions were made from are
kept. Files that several folders share as links count once, and only if all of them go.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.outside.clean import Kind
from pipeline.config.schema import Config
from pipeline.core.artifact import SWEEPS, VARIANTS, VERIFIED, main_folder
from pipeline.core.errors import ResourceError
from pipeline.core.paths import MANIFEST
from pipeline.orchestration.audit.lineage import Lineage, Node

WORK, TRACKING = ".work", ".tracking"
DAY = 24 * 3600
TITLES: dict[Kind, str] = {
    "variants": "results of other settings",
    "work": "interrupted runs",
    "sweeps": "sweeps",
    "outbox": "runs that MLflow refused",
    "backups": "backups and broken files",
}


@dataclass(frozen=True)
class Item:
    """A folder or file. bytes: on the disk. changed: seconds since 1970. what: in words. keep: why
    it is kept; "" if it can go."""

    kind: Kind
    path: Path
    bytes: int
    changed: float
    what: str = ""
    keep: str = ""


def find(
    config: Config, lineage: Lineage, *, registry_answers: bool, now: float | None = None
) -> list[Item]:
    """Everything of these kinds, whether it is to be removed or kept.

    lineage: of the artifacts and of all registered versions. registry_answers: whether it was
    asked; without its answer no result is known to be needless. now: seconds since 1970.
    """
    folder, settings = main_folder(config.artifacts), config.clean
    newest = (now or time.time()) - settings.older_than * DAY
    needed = _needed(lineage, settings.keep_versions)
    items = []
    for item in (
        *_results(folder, lineage, needed, registry_answers=registry_answers),
        *_others(folder),
    ):
        keep = item.keep
        if not keep and item.kind not in settings.what:
            keep = f"clean.what has no {item.kind}"
        elif not keep and item.changed > newest:
            keep = f"it changed in the last {settings.older_than:g} days"
        items.append(Item(item.kind, item.path, item.bytes, item.changed, item.what, keep))
    return items


def _needed(lineage: Lineage, most: int | None) -> dict[str, str]:
    """Why an artifact is needed, by its node's id."""
    needed: dict[str, str] = {}
    versions = [node for node in lineage.all() if node.kind == "version"]
    versions.sort(key=lambda node: -int(node.facts["number"]))
    for place, version in enumerate(versions):
        aliased, saw = version.facts["aliases"], version.facts.get("forgotten")
        if aliased or (not saw and (most is None or place < most)):
            for node in lineage.before(version.id):
                needed.setdefault(node.id, f"of {version.name}")
    for node in lineage.all():
        if node.kind == "artifact" and any(_is_present(place) for place in node.places):
            for source in lineage.before(node.id):
                needed.setdefault(source.id, f"artifacts/{node.name} was made from it")
    return needed


def _is_present(place: str) -> bool:
    """Whether an artifact is the present one of its stage."""
    parts = Path(place).parts
    return VARIANTS not in parts and SWEEPS not in parts


def _results(
    folder: Path, lineage: Lineage, needed: dict[str, str], *, registry_answers: bool
) -> Iterator[Item]:
    unknown = "" if registry_answers else "the registry does not answer, so it may be registered"
    at = {Path(place): node for node in lineage.all() for place in node.places}
    for path in sorted((folder / VARIANTS).glob("*")):
        if path.name == VERIFIED:
            continue
        node = at.get(path)
        why = needed.get(node.id, unknown) if node else ""
        yield _item("variants", path, _described(node), why)
    for path in sorted((folder / SWEEPS).glob("*")):
        nodes = [node for place, node in at.items() if place.is_relative_to(path)]
        why = next((needed[node.id] for node in nodes if node.id in needed), "")
        runs = sum(1 for each in path.iterdir() if each.is_dir()) if path.is_dir() else 0
        yield _item("sweeps", path, f"{runs} runs", why or (unknown if nodes else ""))


def _others(folder: Path) -> Iterator[Item]:
    for path in sorted((folder / WORK).glob("*")):
        yield _item("work", path, "resumes with the same command")
    for path in sorted((folder / TRACKING).glob("*/rejected/*")):
        yield _item("outbox", path, "kept for its reason, in sender.log")
    for path in sorted((folder / TRACKING).glob("*/spool/*.jsonl")):
        yield _item("outbox", path, "a run", "it is not sent to MLflow yet")
    for path in sorted((folder / "mlflow").glob("mlflow.db.*")):
        if path.suffix not in (".db-wal", ".db-shm") and not path.name.endswith("-journal"):
            yield _item("backups", path, "MLflow's store before an upgrade")
    for path in sorted(folder.parent.glob("dvc.lock.broken*")):
        yield _item("backups", path, "a lock file that DVC could not read")


def _item(kind: Kind, path: Path, what: str, keep: str = "") -> Item:
    files = list(_files(path))
    size = sum(_size(file) for file in files)
    changed = max((file.lstat().st_mtime for file in (path, *files) if _is_there(file)), default=0)
    return Item(kind, path, size, changed, what, keep)


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _described(node: Node | None) -> str:
    if node is None:
        return "not whole"
    made = str(node.facts.get("made", ""))[:10]
    return f"{str(node.facts.get('kind', '')).replace('_', ' ')}, {made}"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
    else:
        yield path


def _size(file: Path) -> int:
    with suppress(OSError):
        return file.lstat().st_blocks * 512
    return 0


def freed(items: Iterable[Item]) -> int:
    """Bytes of the disk that removing them frees: a file that something else links to stays."""
    links: Counter[tuple[int, int]] = Counter()
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for item in items:
        for file in _files(item.path):
            with suppress(OSError):
                status = file.lstat()
                key = (status.st_dev, status.st_ino)
                links[key] += 1
                known[key] = (status.st_nlink, status.st_blocks * 512)
    return sum(size for key, (count, size) in known.items() if links[key] >= count)


def remove(items: Sequence[Item]) -> None:
    """Remove them. An artifact's manifest goes first: what is left of it after an interruption is
    no artifact any more.

    Raises:
        ResourceError: something cannot be removed.
    """
    for item in items:
        path = item.path
        try:
            if path.is_dir() and not path.is_symlink():
                for manifest in (path / MANIFEST, *path.glob(f"*/*/{MANIFEST}")):
                    manifest.unlink(missing_ok=True)
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            (path.parent / VERIFIED / f"{path.name}.json").unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(
                f"{error.filename or path} cannot be removed ({error.strerror}): allow it, and run "
                "stage=clean again"
            ) from error
