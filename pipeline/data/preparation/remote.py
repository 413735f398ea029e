"""Data files of the Hugging Face Hub or an object store, fetched into a cache.

    data.folder=hf://datasets/ORG/NAME@REVISION      data.folder=s3://BUCKET/PREFIX

    local_folder(tree["data"], artifacts)   # the folder of the cache that stands for the address
    fetch(config.data, artifacts)           # the files that its globs match, if some are missing

The first command of a project that meets an address resolves its revision, and records it in
artifacts/.data_sources.json; later ones keep to the record, as with models (models/sources). A
store has no commits: its revision is a digest of the list of the files that the globs match.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.core.artifact import main_folder, sha256_of_json
from pipeline.core.console import get_console
from pipeline.core.errors import DataError
from pipeline.models.sources.address import DATA, Address, parse
from pipeline.models.sources.fetching import Files, read_records, write_records
from pipeline.models.sources.hub import Hub
from pipeline.models.sources.objects import Objects

RECORDS = ".data_sources.json"
_GLOBS = ("train", "test", "sources")  # settings; each glob must match


def local_folder(data: Mapping[str, Any], artifacts: Path) -> str:
    """The folder that stands for an address, whose files need not be there yet.

    data: the section of the settings; its folder is an address.

    Raises:
        ConfigError: the address has another form. DataError: it cannot be read, or a glob matches
            no file there.
    """
    address = parse(str(data["folder"]), DATA)
    if isinstance(address, Path):
        return str(address)
    globs = _globs(data)
    key, file = _key(address, globs), main_folder(artifacts) / RECORDS
    records, place = read_records(file), _place(address, globs)
    if key not in records:
        revision = place.resolve()
        _chosen(place.files(revision), address, globs)
        records[key] = {"source": str(address), "revision": revision, "globs": dict(globs)}
        write_records(file, records)
        get_console().print(f"{address} is revision {revision[:12]} here ({file})", soft_wrap=True)
    folder = place.folder(records[key]["revision"])
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def fetch(data: DataConfig, artifacts: Path) -> None:
    """Fetch what the globs match and is missing, if the folder is one of the cache.

    Raises:
        DataError: it cannot be fetched, or arrives damaged. ResourceError: a disk is full.
    """
    file = main_folder(artifacts) / RECORDS
    records = read_records(file)
    globs = _globs(data.model_dump())
    found = _find(data.folder, records, globs)
    if found is None or _is_whole(data.folder, found[1], globs):
        return
    key, record = found
    address = _address(record)
    place = _place(address, globs)
    names = _chosen(place.files(record["revision"]), address, globs)
    files = dict(sorted(place.get(record["revision"], names).items()))
    digest = sha256_of_json({name: entry["sha256"] for name, entry in files.items()})
    records[key] = {**record, "globs": dict(globs), "files": files, "digest": digest}
    write_records(file, records)
    size = sum(entry["bytes"] for entry in files.values())
    get_console().print(
        f"[green]✓[/] {address}: {len(files)} files, {size / 2**20:,.1f} MiB, in {data.folder}",
        soft_wrap=True,
    )


def provenance(folder: Path, artifacts: Path) -> dict[str, Any] | None:
    """The address of a folder of the cache, its revision and the digest of what was fetched; None
    of another folder."""
    found = _find(folder, read_records(main_folder(artifacts) / RECORDS))
    if found is None:
        return None
    return {key: found[1].get(key) for key in ("source", "revision", "digest")}


def _globs(data: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The globs by their setting; snapshots of served conversations may be absent."""
    given = [(name, tuple(map(str, data.get(name) or ()))) for name in _GLOBS]
    return (*given, ("recorded", (f"{data.get('recorded')}/*.jsonl",)))


def _key(address: Address, globs: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """Of a record. A commit is of all files, and a store's revision of those that globs match."""
    return str(address) if address.scheme == "hf" else f"{address} {json.dumps(dict(globs))}"


@lru_cache(32)
def _place(address: Address, globs: tuple[tuple[str, tuple[str, ...]], ...]) -> Files:
    if address.scheme == "hf":
        return Hub(address)
    return Objects(
        address,
        chosen=partial(_chosen, address=address, globs=globs),
        setting="data.folder",
        records=f"artifacts/{RECORDS}",
    )


def _chosen(
    names: Iterable[str], address: Address, globs: Sequence[tuple[str, tuple[str, ...]]]
) -> list[str]:
    """The files that the globs match, as `finding.find_files` would find them in a folder.

    Raises:
        DataError: a glob matches none.
    """
    known, chosen = list(names), dict[str, None]()
    for setting, patterns in globs:
        for pattern in patterns:
            found = _matching(known, pattern)
            if not found and setting in _GLOBS:
                raise DataError(
                    f"data.{setting}: no file in {address} matches {pattern!r}: correct either of "
                    "them"
                )
            chosen.update(dict.fromkeys(found))
    return sorted(chosen)


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    """Names that match a glob; if none does, those below folders that do (saved data sets)."""
    from fsspec.utils import glob_translate

    match = re.compile(glob_translate(pattern)).match
    exact = [name for name in names if name == pattern]
    found = exact or [name for name in names if match(name)]
    return found or [
        name
        for name in names
        if any(match(above.as_posix()) for above in Path(name).parents if above.name)
    ]


def _find(
    folder: Path,
    records: Mapping[str, dict[str, Any]],
    globs: Sequence[tuple[str, tuple[str, ...]]] | None = None,
) -> tuple[str, dict[str, Any]] | None:
    """The record whose folder it is; of several that of the same globs."""
    found = [
        (key, record)
        for key, record in records.items()
        if _place(_address(record), ()).folder(record["revision"]) == folder
    ]
    same = [item for item in found if globs and item[1]["globs"] == _as_json(globs)]
    return next(iter([*same, *found]), None)


def _address(record: Mapping[str, Any]) -> Address:
    address = parse(str(record["source"]), DATA)
    assert isinstance(address, Address)
    return address


def _is_whole(
    folder: Path, record: Mapping[str, Any], globs: Sequence[tuple[str, tuple[str, ...]]]
) -> bool:
    """Whether what the globs match was fetched and is there, by sizes."""
    files = record.get("files") or {}
    if record["globs"] != _as_json(globs) or not files:
        return False
    try:
        return all((folder / name).stat().st_size == f["bytes"] for name, f in files.items())
    except OSError:
        return False


def _as_json(globs: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, list[str]]:
    return {setting: list(patterns) for setting, patterns in globs}
