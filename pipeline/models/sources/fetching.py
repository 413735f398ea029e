"""Fetch a model into the cache, and keep a record of what was fetched for this project."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.artifact import main_folder, sha256_of_json
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError, DataError
from pipeline.models.files import WEIGHTS_INDEX
from pipeline.models.other_forms import is_nemo
from pipeline.models.sources.address import NEMO, Address, is_source, parse
from pipeline.models.sources.files import Remote, described, weights

RECORDS = ".sources.json"
CONFIG = "config.json"
_REVISION = re.compile(r"^[0-9a-f]{40}$|^[0-9a-f]{64}$")  # it becomes the name of a folder


class Files(Protocol):
    """Files that are fetched one by one."""

    def resolve(self) -> str:
        """The revision that the address means now."""

    def files(self, revision: str) -> Mapping[str, Remote]:
        """The files of a revision, by name."""

    def folder(self, revision: str) -> Path:
        """The folder of the cache for a revision."""

    def get(self, revision: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Fetch files into the folder; what `files.entry` makes of each."""


class Place(Protocol):
    """Where a model comes from."""

    def resolve(self) -> str:
        """The revision that the address means now."""

    def folder(self, revision: str) -> Path:
        """The folder of the cache for a revision."""

    def describe(self, revision: str) -> None:
        """Have config.json in the folder."""

    def whole(self, revision: str) -> dict[str, dict[str, Any]]:
        """Have all that a model needs in the folder; what `files.entry` makes of each file."""


class _Fetched:
    """A place whose files are fetched."""

    def __init__(self, address: Address, files: Files) -> None:
        self._address, self._files = address, files

    def resolve(self) -> str:
        return self._files.resolve()

    def folder(self, revision: str) -> Path:
        return self._files.folder(revision)

    def describe(self, revision: str) -> None:
        if CONFIG not in self._files.files(revision):
            raise DataError(f"{self._address} has no {CONFIG}: give the name of a model")
        self._files.get(revision, [CONFIG])

    def whole(self, revision: str) -> dict[str, dict[str, Any]]:
        names, get = self._files.files(revision), self._files.get
        found = get(revision, described(names))
        index = self.folder(revision) / WEIGHTS_INDEX
        return found | get(revision, weights(names, index, self._address))


@lru_cache(32)
def _place(address: Address) -> Place:
    if address.scheme == NEMO:
        from pipeline.models.sources.checkpoints import Checkpoint

        return Checkpoint(address)
    if address.scheme == "hf":
        from pipeline.models.sources.hub import Hub

        return _Fetched(address, Hub(address))
    if address.scheme == "ngc":
        raise ConfigError(
            f"model.path={address} is fetched by NVIDIA's own client: run `ngc registry model "
            f"download-version {address.name} --dest FOLDER`, and give model.path=FOLDER/…"
        )
    from pipeline.models.sources.objects import Objects

    return _Fetched(address, Objects(address))


def comes_from_elsewhere(text: object) -> bool:
    """Whether what model.path names is fetched or converted into the cache."""
    return is_source(text) or (isinstance(text, str) and bool(text) and is_nemo(Path(text)))


def local_folder(text: str, artifacts: Path) -> str:
    """The folder that a source stands for, with its config.json in it.

    artifacts: the folder of artifacts, which keeps the record of the revision.

    Raises:
        ConfigError: the address has another form. DataError: it cannot be fetched.
    """
    address = parse(text) if is_source(text) else Path(text)
    if isinstance(address, Path):
        if not is_nemo(address):
            return str(address)
        address = Address(NEMO, str(address.resolve()))
    records = _read(artifacts)
    record, place = records.get(str(address)), _place(address)
    # A folder of this machine is what it is now, as one that is read where it is.
    if record is None or (address.scheme == NEMO and place.resolve() != record["revision"]):
        revision = place.resolve()
        records[str(address)] = record = {"revision": revision}
        place.describe(revision)
        _write(artifacts, records)
        get_console().print(
            f"{address} is revision {revision[:12]} here ({_file(artifacts)})", soft_wrap=True
        )
    folder = place.folder(record["revision"])
    if not (folder / CONFIG).is_file():  # the cache was cleared since
        place.describe(record["revision"])
    return str(folder)


def fetch(folder: Path, artifacts: Path) -> None:
    """Fetch what is missing of a model, if its folder is one of the cache.

    Raises:
        DataError: it cannot be fetched, or arrives damaged. ResourceError: a disk is full.
    """
    records = _read(artifacts)
    found = _find(folder, records)
    if found is None or is_whole(folder, artifacts):
        return
    address, place, record = found
    files = place.whole(record["revision"])
    record["files"] = dict(sorted(files.items()))
    record["digest"] = sha256_of_json({n: f["sha256"] for n, f in record["files"].items()})
    _write(artifacts, records | {str(address): record})
    size = sum(f["bytes"] for f in files.values())
    get_console().print(
        f"[green]✓[/] {address}: {len(files)} files, {size / 2**20:,.1f} MiB, in {folder}",
        soft_wrap=True,
    )


def is_whole(folder: Path, artifacts: Path) -> bool:
    """Whether nothing of a model is left to fetch: its folder is not in the cache, or holds the
    files that were recorded, by their sizes."""
    found = _find(folder, _read(artifacts))
    if found is None:
        return True
    try:
        files = found[2].get("files") or {}
        sizes = [(folder / name).stat().st_size == f["bytes"] for name, f in files.items()]
    except OSError:
        return False
    return bool(sizes) and all(sizes)


def provenance(folder: Path, artifacts: Path) -> dict[str, Any] | None:
    """The source of a folder of the cache, its revision, and the digest of what was fetched."""
    found = _find(folder, _read(artifacts))
    if found is None:
        return None
    address, _, record = found
    # A path of this machine would say nothing elsewhere.
    named = f"{NEMO}://{Path(address.name).name}" if address.scheme == NEMO else str(address)
    return {"source": named, **{k: record.get(k) for k in ("revision", "digest")}}


def _find(
    folder: Path, records: Mapping[str, dict[str, Any]]
) -> tuple[Address, Place, dict[str, Any]] | None:
    """The record whose folder it is."""
    for text, record in records.items():
        address = parse(text)
        if isinstance(address, Address):
            place = _place(address)
            if place.folder(record["revision"]) == folder:
                return address, place, record
    return None


def _file(artifacts: Path) -> Path:
    return main_folder(artifacts) / RECORDS


def _read(artifacts: Path) -> dict[str, dict[str, Any]]:
    return read_records(_file(artifacts))


def _write(artifacts: Path, records: Mapping[str, Any]) -> None:
    write_records(_file(artifacts), records)


def read_records(file: Path) -> dict[str, dict[str, Any]]:
    """What a file of this form records of sources, by their addresses.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = json.loads(file.read_bytes())
        if all(_REVISION.match(record["revision"]) for record in content.values()):
            return dict(content)
        cause = "a record has no revision"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = f"{type(error).__name__}"
    raise DataError(
        f"{file}, the record of what was fetched, cannot be read ({cause}): delete it, and the "
        "next command resolves revisions anew"
    )


def write_records(file: Path, records: Mapping[str, Any]) -> None:
    """Write what `read_records` reads, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(file)
