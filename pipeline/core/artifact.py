"""Artifacts: what stages write for one another, and how they are kept whole.

An artifact is a folder with a `manifest.json`, which is written last, before the folder is renamed
into place. A folder without one is unfinished. A file that differs from the manifest or that the
manifest does not name, and a manifest that differs from its own seal, mean that somebody altered
the artifact. Opening any of these is an error that names the command to run.

    artifacts/<stage>/                       the current artifact of a stage
    artifacts/.work/<stage>-<fingerprint>/   being written, or left by an interrupted run
    artifacts/.variants/<stage>-<fingerprint>/   made with other settings; restored with them
    artifacts/sweeps/<sweep>/<run>/          the same, of one run of a sweep
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.core.errors import ArtifactError, ResourceError

MANIFEST = "manifest.json"
SCRATCH = ".scratch"
VERIFIED = ".verified"
VARIANTS = ".variants"
SWEEPS = "sweeps"
SCHEMA = 2


@dataclass(frozen=True)
class Outcome:
    """What a stage says of its work.

    kind: the artifact's kind, as in docs/ARCHITECTURE.md.
    metrics: flat figures, for the tracker and the summary.
    proof: measured evidence that the work is right (differences of logits, cosines …).
    failure: why a gate refuses the result; the artifact is kept, the run fails with the reason.
    """

    kind: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None


class FileEntry(TypedDict):
    """One file of an artifact, as the manifest names it."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json: what an artifact is, and everything it came from."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    kind: str
    stage: str
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]  # stage → digest of the artifact that was read
    input_seals: Mapping[str, str]  # stage → seal of the same artifact's manifest
    files: Mapping[str, FileEntry]  # by path below the folder
    metrics: Mapping[str, float]
    proof: Mapping[str, Any]
    failure: str | None
    versions: Mapping[str, int]  # declared: of the stage, and of its components
    libraries: Mapping[str, str]  # those that decide the result; part of the fingerprint
    code: Mapping[str, Any]  # git commit, whether the tree was changed, digest of the package
    environment: Mapping[str, Any]  # package versions, hardware
    seconds: float
    peak_memory_bytes: int
    created: str
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """Identity of the content: the kind and every file's hash, without times or hosts."""
        content = {"kind": self.kind, "files": {n: f["sha256"] for n, f in self.files.items()}}
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

    Files whose size and time of change are as when they were last verified are not read again
    (like git's index), so that a checkpoint of 100 GB opens at once.

    stage: that must have made it; the folder's name if it is not given. reread: read every byte.

    Raises:
        ArtifactError: missing, half-written, altered, or made by another stage.
    """
    stage = stage or path.name
    again = f"run `python -m pipeline stage={stage}`"
    require_folder(path, stage=stage)
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path} has no {MANIFEST}, so it is not whole: remove it and {again}")
    manifest = read_manifest(path, again)
    if manifest.stage != stage:
        raise ArtifactError(
            f"{path} was made by stage={manifest.stage}, not by stage={stage}: put the right "
            f"folder there, or {again}"
        )
    index = _verified_index(path)
    known = {} if reread else _read_json(index)
    verified = {}
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing though the manifest names it: {again}")
        stamp = _stamp(file)
        read = known.get(name) != [stamp, expected["sha256"]]
        if read and not _matches(file, expected):
            raise ArtifactError(f"{file} was altered after it was written: {again}")
        verified[name] = [stamp, expected["sha256"]]
    for file in _files(path):
        if file.relative_to(path).as_posix() not in manifest.files:
            raise ArtifactError(f"{file} was added after the artifact was made: remove it")
    if verified != known:
        _write_json(index, verified)
    return Artifact(path, manifest)


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
        content = json.loads(file.read_text())
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
    seal = content.pop("seal", None)
    try:
        manifest = _MANIFEST.validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{file}: {field}: {first['msg']}: {again}") from error
    if seal != manifest.seal:
        raise ArtifactError(f"{file} was edited after it was written: {again}")
    return manifest


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
        if known.get(name, [None])[0] != stamp:
            known[name] = [stamp, sha256_of_file(file)]
        digests.append(known[name][1])
    if known != before:
        _write_json(index, known)
    return digests


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest as the last file of the folder, and have the disk keep it.

    It is written beside the folder and moved in, so that nothing of a write that was interrupted
    can become part of an artifact.
    """
    temporary = folder.with_name(f"{folder.name}.manifest.tmp")
    with temporary.open("w") as stream:
        json.dump({**asdict(manifest), "seal": manifest.seal}, stream, indent=1, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST)


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """sha256 and size of every file below the folder, hashed in parallel.

    Raises:
        ArtifactError: the folder holds a link, which would point elsewhere once moved.
    """
    files = sorted(_files(folder))
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


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link; an artifact holds only files")
        if path.is_file() and path.name != MANIFEST:
            yield path


def _matches(file: Path, expected: FileEntry) -> bool:
    same_size = file.stat().st_size == expected["bytes"]
    return same_size and sha256_of_file(file) == expected["sha256"]


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _verified_index(path: Path) -> Path:
    """The index lies beside the artifacts, not in them: an artifact never changes."""
    return path.parent / VERIFIED / f"{path.name}.json"


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _write_json(path: Path, content: Mapping[str, list[str]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(path)
    except OSError:  # an index is a convenience; a read-only folder of artifacts is fine
        pass
