"""Artifacts: what stages write for one another, and how they are kept whole.

An artifact is a folder with a `manifest.json`, which is written last, before the folder is renamed
into place. A folder without one is unfinished. A file that differs from the manifest or that the
manifest does not name, and a manifest that differs from its own seal, mean that somebody altered
the artifact. Opening any of these is an error that names the command to run. A seal is no
signature: who can write here can seal a false manifest, so nothing in an artifact is ever run.

    artifacts/<stage>/                       the current artifact of a stage
    artifacts/.work/<stage>-<fingerprint>/   being written, or left by an interrupted run
    artifacts/.variants/<stage>-<fingerprint>/   made with other settings; restored with them
    artifacts/sweeps/<sweep>/<run>/          the same, of one run of a sweep
"""

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.core.errors import ArtifactError, ResourceError
from pipeline.core.paths import MANIFEST

SCRATCH = ".scratch"
VERIFIED = ".verified"
VARIANTS = ".variants"
SWEEPS = "sweeps"
SCHEMA = 3
MOST_MANIFEST = 64 * 2**20  # bytes; enough for half a million files


@dataclass(frozen=True)
class Outcome:
    """What a stage says of its work.

    kind: the artifact's kind, as in docs/ARCHITECTURE.md.
    metrics: flat figures, for the tracker and the summary.
    proof: measured evidence that the work is right (differences of logits, cosines …).
    failure: why a gate refuses the result; the artifact is kept, the run fails with the reason.
    measured: files with times or memory of this run, by path below the artifact's folder. They are
        verified as all are, but are not part of its identity: what took longer is no other result.
    """

    kind: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None
    measured: Collection[str] = ()


def _below(name: str) -> str:
    """The path of a file below the artifact's folder, in the one form that names it."""
    parts = name.split("/")
    if not name or {"", ".", ".."} & set(parts) or "\0" in name or name == MANIFEST:
        raise ValueError(f"{name[:100]!r} is not a path below the artifact")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,63}$")]  # of a stage, or a kind of artifact
Count = Annotated[int, Field(ge=0, lt=2**63)]


class FileEntry(TypedDict):
    """One file of an artifact, as the manifest names it."""

    sha256: Sha256
    bytes: Count


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json: what an artifact is, and everything it came from."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    kind: Name
    stage: Name
    fingerprint: Sha256
    config: Mapping[str, Any]
    inputs: Mapping[Name, Sha256]  # stage → digest of the artifact that was read
    input_seals: Mapping[Name, Sha256]  # stage → seal of the same artifact's manifest
    # By path below the folder, with / between its parts.
    files: Mapping[Annotated[str, AfterValidator(_below)], FileEntry]
    measured: Sequence[str]  # the files that do not count for the digest; see Outcome
    metrics: Mapping[str, FiniteFloat]
    proof: Mapping[str, Any]
    failure: str | None
    versions: Mapping[str, int]  # declared: of the stage, and of its components
    libraries: Mapping[str, str]  # those that decide the result; part of the fingerprint
    code: Mapping[str, Any]  # git commit, whether the tree was changed, digest of the package
    environment: Mapping[str, Any]  # package versions, hardware
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    peak_memory_bytes: Count
    created: str
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """Identity of the content: the kind and every file's hash, but of those with times."""
        files = {n: f["sha256"] for n, f in self.files.items() if n not in self.measured}
        content = {"kind": self.kind, "files": files}
        return sha256_of_json(content)

    @property
    def seal(self) -> str:
        """sha256 of everything that the manifest says. The manifest file holds it beside its
        fields, and the artifacts made from this one record it."""
        return sha256_of_json(asdict(self))

    @property
    def bytes(self) -> int:
        return sum(f["bytes"] for f in self.files.values())


@dataclass(frozen=True)
class Artifact:
    """An opened, verified artifact."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    def require(self, *kinds: str) -> "Artifact":
        """Itself, if it is of one of these kinds.

        Raises:
            ArtifactError: it is of another kind.
        """
        if self.kind not in kinds:
            raise ArtifactError(
                f"{self.path} is a {self.kind}, and a {' or '.join(kinds)} is needed: run "
                f"`python -m pipeline stage={self.manifest.stage}` again with matching settings"
            )
        return self


def sha256_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_artifact(path: Path, *, stage: str | None = None, reread: bool = False) -> Artifact:
    """Open an artifact and verify every file against its manifest.

    Files whose size, times and inode are as when they were last verified are not read again (like
    git's index), so that a checkpoint of 100 GB opens at once. Whoever writes a file changes its
    times; what a disk loses by itself is found only with `reread`.

    stage: that must have made it; the folder's name if it is not given. reread: read every byte.

    Raises:
        ArtifactError: missing, half-written, altered, or made by another stage.
    """
    stage = stage or path.name
    again = f"run `python -m pipeline stage={stage}`"
    require_folder(path, stage=stage)
    try:
        return _open(path, stage, again, reread=reread)
    except OSError as error:  # no permission, or a disk that cannot be read
        raise ArtifactError(
            f"{error.filename or path} cannot be read ({error.strerror}): correct that, or remove "
            f"{path} and {again}"
        ) from error


def _open(path: Path, stage: str, again: str, *, reread: bool) -> Artifact:
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path} has no {MANIFEST}, so it is not whole: remove it and {again}")
    manifest = read_manifest(path, again)
    if manifest.stage != stage:
        raise ArtifactError(
            f"{path} was made by stage={manifest.stage}, not by stage={stage}: put the right "
            f"folder there, or {again}"
        )
    _require_named(path, manifest.files, again)
    index = _verified_index(path)
    known = {} if reread else _read_json(index)
    verified = {name: [_stamp(path / name), f["sha256"]] for name, f in manifest.files.items()}
    unknown = [name for name, entry in verified.items() if known.get(name) != entry]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _matches(path / name, manifest.files[name]), unknown)
        for name, matches in zip(unknown, found, strict=True):
            if not matches:
                raise ArtifactError(f"{path / name} was altered after it was written: {again}")
    if verified != known:
        _write_json(index, verified)
    return Artifact(path, manifest)


def _require_named(path: Path, files: Mapping[str, FileEntry], again: str) -> None:
    """Refuse a folder whose files and folders are not exactly those that a manifest names."""
    named = {path / name for name in files}
    folders = {parent for file in named for parent in file.parents}
    found = set()
    for entry in _entries(path):
        if entry not in named and entry not in folders:
            raise ArtifactError(f"{entry} was added after the artifact was made: remove it")
        if entry in named and not entry.is_file():
            raise ArtifactError(f"{entry} is not a file any more: remove {path} and {again}")
        found.add(entry)
    for file in sorted(named - found):
        raise ArtifactError(f"{file} is missing though the manifest names it: {again}")


def require_one_history(artifacts: Mapping[str, Artifact]) -> None:
    """Refuse artifacts of which one records another manifest of a second one than that has now.

    artifacts: by stage. An artifact that was made again is newer than those made from it before.

    Raises:
        ArtifactError: a manifest was edited after an artifact had been made from it.
    """
    for user in artifacts.values():
        for stage in user.manifest.inputs:
            if stage in artifacts and edited_since(artifacts[stage].manifest, user.manifest):
                raise ArtifactError(
                    f"{artifacts[stage].path / MANIFEST} was edited after {user.path} was made "
                    f"from it: run `python -m pipeline stage={stage}` again"
                )


def edited_since(manifest: Manifest, user: Manifest) -> bool:
    """Whether a manifest says something else than when `user`, a later artifact, was made from it,
    of the same files."""
    return (
        user.inputs.get(manifest.stage) == manifest.digest
        and user.input_seals.get(manifest.stage) != manifest.seal
        and manifest.created <= user.created
    )


def require_folder(path: Path, *, stage: str | None = None) -> None:
    """Raise ArtifactError if there is no artifact, without reading or writing anything."""
    if not path.is_dir():
        raise ArtifactError(
            f"{path} does not exist: run `python -m pipeline stage={stage or path.name}` first"
        )


def read_manifest(path: Path, again: str) -> Manifest:
    """The manifest of a folder, its files not verified.

    again: the command that makes the artifact, for the message.

    Raises:
        ArtifactError: it cannot be read, was edited, or another version of the pipeline wrote it.
    """
    file = path / MANIFEST
    try:
        text = _read_text(file)
        content = json.loads(text, parse_constant=_no_number)
        schema = content["schema"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{file} cannot be read ({_short(error)}): {again}") from error
    if schema != SCHEMA:
        age = "an earlier" if isinstance(schema, int) and schema < SCHEMA else "another"
        raise ArtifactError(
            f"{path} was written by {age} version of the pipeline (manifest schema "
            f"{str(schema)[:40]}, this one reads {SCHEMA}): {again}; the artifact that is there is "
            f"kept in {path.parent / VARIANTS}"
        )
    content.pop("seal", None)
    try:
        manifest = _MANIFEST.validate_json(json.dumps(content))
    except (ValidationError, RecursionError) as error:
        raise ArtifactError(f"{file}: {_fault(error)}: {again}") from error
    # The text, not only the values: no key twice, and nothing that another reader takes otherwise.
    if text != _text(manifest):
        raise ArtifactError(f"{file} was edited after it was written: {again}")
    return manifest


def _read_text(file: Path) -> str:
    """The text of one of our own files.

    Raises:
        OSError, ValueError: it is no file, which might be read without end, or too large.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file")
    if status.st_size > MOST_MANIFEST:
        raise ValueError(f"it has {status.st_size:,} bytes")
    return file.read_text(encoding="utf-8")


def _fault(error: Exception) -> str:
    """What is wrong, without the values, which may be long."""
    if not isinstance(error, ValidationError):
        return _short(error)
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part)[:100] for part in first["loc"])
    return f"{field}: {first['msg'][:200]}"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _text(manifest: Manifest) -> str:
    """The manifest file's whole text."""
    content = {**asdict(manifest), "seal": manifest.seal}
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def note_verified(path: Path, manifest: Manifest) -> None:
    """Note that the files are as their hashes in the manifest, which were taken a moment ago, so
    that opening the artifact does not read them all again."""
    found = {name: [_stamp(path / name), f["sha256"]] for name, f in manifest.files.items()}
    _write_json(_verified_index(path), found)


def main_folder(artifacts: Path) -> Path:
    """The project's folder of artifacts: itself, unless it is that of one run of a sweep."""
    if artifacts.parent.parent.name == SWEEPS:
        return artifacts.parents[2]
    return artifacts


def kept(artifacts: Path, stage: str) -> Iterator[tuple[Path, Manifest]]:
    """A stage's artifact and its variants, then those of the project's other runs: all whose
    manifests can be read. Not verified.
    """
    main = main_folder(artifacts)
    others = [main, *sorted(main.glob(f"{SWEEPS}/*/*"))]
    for folder in (artifacts, *(other for other in others if other != artifacts)):
        for place in (folder / stage, *sorted((folder / VARIANTS).glob(f"{stage}-*"))):
            try:
                manifest = read_manifest(place, "")
            except ArtifactError:
                continue
            if manifest.stage == stage:
                yield place, manifest


def every_kept(artifacts: Path) -> Iterator[tuple[Path, Manifest]]:
    """The same of all stages, each stage's own artifact first."""
    main = main_folder(artifacts)
    for folder in (main, *sorted(main.glob(f"{SWEEPS}/*/*"))):
        for file in (*sorted(folder.glob(f"*/{MANIFEST}")),
                     *sorted(folder.glob(f"{VARIANTS}/*/{MANIFEST}"))):  # fmt: skip
            with suppress(ArtifactError):
                yield file.parent, read_manifest(file.parent, "")


def link_folder(source: Path, target: Path) -> None:
    """A second copy of an artifact, as hard links where the disk allows them: an artifact's files
    never change in place.

    Raises:
        OSError: it cannot be written, or the source was replaced meanwhile.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def sha256_with_index(files: Sequence[Path], index: Path) -> list[str]:
    """sha256 of files outside the artifacts, each read again only when its size or time changed."""
    known = _read_json(index)
    before = dict(known)
    digests = []
    for file in files:
        stamp, name = _stamp(file), str(file.resolve())
        entry = known.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != stamp:
            entry = known[name] = [stamp, sha256_of_file(file)]
        digests.append(entry[1])
    if known != before:
        _write_json(index, known)
    return digests


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest as the last file of the folder, and have the disk keep it.

    It is written beside the folder and moved in, so that nothing of a write that was interrupted
    can become part of an artifact.

    Raises:
        ArtifactError: it could not be read back: a figure of the stage is not a finite number.
    """
    try:
        text = _text(_MANIFEST.validate_json(json.dumps(asdict(manifest), allow_nan=False)))
    except ValueError as error:
        endless = [name for name, value in manifest.metrics.items() if not math.isfinite(value)]
        why = f"{', '.join(endless)} is not a finite number" if endless else _fault(error)
        raise ArtifactError(
            f"the result of stage={manifest.stage} cannot be recorded ({why}), so nothing was "
            "kept: report it"
        ) from error
    temporary = folder.with_name(f"{folder.name}.manifest.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST)


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """sha256 and size of every file below the folder, hashed in parallel. Removes empty folders.

    Raises:
        ArtifactError: the folder holds a link, which would point elsewhere once moved.
    """
    entries = [entry for entry in _entries(folder) if entry != folder / MANIFEST]
    for entry in sorted(entries, reverse=True):
        if entry.is_dir() and not any(entry.iterdir()):
            entry.rmdir()
    files = sorted(entry for entry in entries if entry.is_file())
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(sha256_of_file, files))
    return {
        f.relative_to(folder).as_posix(): {"sha256": h, "bytes": f.stat().st_size}
        for f, h in zip(files, hashes, strict=True)
    }


def replace_folder(new: Path, place: Path, aside: Path | None) -> None:
    """Rename `new` to `place`; what stood there goes to `aside`, or away.

    Raises:
        ResourceError: the disk is full or refuses the write.
    """
    try:
        if place.exists():
            if aside is None:
                shutil.rmtree(place)
            else:
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                place.rename(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        new.rename(place)
    except OSError as error:
        raise ResourceError(
            f"{place} cannot be written ({error}): free the disk and run again"
        ) from error


_MANIFEST = TypeAdapter(Manifest)


def _entries(folder: Path) -> Iterator[Path]:
    """Files and folders below a folder, but its manifest."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            entry = Path(parent, name)
            if entry.is_symlink():
                raise ArtifactError(f"{entry} is a link; an artifact holds only files: remove it")
            if not entry.is_dir() and not entry.is_file():
                raise ArtifactError(f"{entry} is neither a file nor a folder: remove it")
            if entry != folder / MANIFEST:
                yield entry


def _raise(error: OSError) -> NoReturn:
    raise error


def _matches(file: Path, expected: FileEntry) -> bool:
    same_size = file.stat().st_size == expected["bytes"]
    return same_size and sha256_of_file(file) == expected["sha256"]


def _stamp(file: Path) -> str:
    """What changes when a file is written. The time of change (ctime) changes with its name and
    links, too; but unlike that of modification, nobody can set it back."""
    status = file.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def _verified_index(path: Path) -> Path:
    """The index lies beside the artifacts, not in them: an artifact never changes."""
    return path.parent / VERIFIED / f"{path.name}.json"


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(_read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, content: Mapping[str, list[str]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(path)
    except OSError:  # an index is a convenience; a read-only folder of artifacts is fine
        pass
