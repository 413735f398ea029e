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
from pipeline.models.sources.address import Address, parse
from pipeline.models.sources.files import Remote, described, weights

RECORDS = ".sources.json"
_REVISION = re.compile(r"^[0-9a-f]{40}$|^[0-9a-f]{64}$")  # it becomes the name of a folder


class Place(Protocol):
    """Where models are fetched from."""

    def resolve(self) -> str:
        """The revision that the address means now."""

    def files(self, revision: str) -> Mapping[str, Remote]:
        """The files of a revision, by name."""

    def folder(self, revision: str) -> Path:
        """The folder of the cache for a revision."""

    def get(self, revision: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Fetch files into the folder; what `files.entry` makes of each."""


@lru_cache(32)
def _place(address: Address) -> Place:
    if address.scheme == "hf":
        from pipeline.models.sources.hub import Hub

        return Hub(address)
    if address.scheme == "ngc":
        raise ConfigError(
            f"model.path={address} is fetched by NVIDIA's own client: run `ngc registry model "
            f"download-version {address.name} --dest FOLDER`, and give model.path=FOLDER/…"
        )
    from pipeline.models.sources.objects import Objects

    return Objects(address)


def local_folder(text: str, artifacts: Path) -> str:
    """The folder that a source stands for, with its config.json in it.

    artifacts: the folder of artifacts, which keeps the record of the revision.

    Raises:
        ConfigError: the address has another form. DataError: it cannot be fetched.
    """
    address = parse(text)
    if isinstance(address, Path):
        return str(address)
    records = _read(artifacts)
    record, place = records.get(str(address)), _place(address)
    if record is None:
        revision = place.resolve()
        records[str(address)] = record = {"revision": revision}
        _get(place, revision, ["config.json"], address)
        _write(artifacts, records)
        get_console().print(
            f"{address} is revision {revision[:12]} here ({_file(artifacts)})", soft_wrap=True
        )
    folder = place.folder(record["revision"])
    if not (folder / "config.json").is_file():  # the cache was cleared since
        _get(place, record["revision"], ["config.json"], address)
    return str(folder)


def _get(place: Place, revision: str, names: Sequence[str], address: Address) -> None:
    known = place.files(revision)
    for name in names:
        if name not in known:
            raise DataError(f"{address} has no {name}: give the name of a model")
    place.get(revision, names)


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
    revision = record["revision"]
    names = place.files(revision)
    small = described(names)
    files = place.get(revision, small)
    files |= place.get(revision, weights(names, folder / WEIGHTS_INDEX, address))
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
    return {"source": str(address), **{k: record.get(k) for k in ("revision", "digest")}}


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
