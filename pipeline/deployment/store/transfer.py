"""Push the artifacts of a version to a store, and pull one of them from it.

Both compare every byte with its sha256, resume what an earlier try left, and leave nothing half
done: the list of a version is written when its files are stored, and a folder appears when it is
whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pipeline.core.artifact import (
    Artifact,
    Manifest,
    note_verified,
    open_artifact,
    read_manifest,
    replace_folder,
    sha256_of_file,
)
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, Busy, ConfigError, ResourceError
from pipeline.core.hardware import free_disk_bytes
from pipeline.core.paths import MANIFEST
from pipeline.deployment.store.blobs import (
    AGAIN,
    BUNDLE_BYTES,
    FULL,
    PART,
    Altered,
    Blob,
    BrokeOff,
    Bundle,
    Kept,
    Sent,
    Store,
)
from pipeline.models.sources.transfer import run_all

ROOM = 16 * 2**20  # bytes that a disk must have beyond the files
SYNC_BYTES = 32 * 2**20  # that are written between two looks at whether the disk has taken the last


class _Count:
    """Bytes that have gone, counted by several threads."""

    def __init__(self) -> None:
        self.total, self._lock = 0, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.total += count


def push(artifacts: Mapping[str, Artifact], store: Store) -> Bundle:
    """Store every file of these artifacts that the store lacks, and the list of them.

    artifacts: by stage, opened and so verified.

    Returns:
        The list; its digest names the version's bytes.

    Raises:
        PipelineError: the store cannot be used, or vanished; what arrived stays, and no list is
        written. ArtifactError: a file was altered meanwhile, or the store does not keep what it is
        sent.
    """
    kept, files = {}, dict[str, tuple[Blob, Path]]()
    for stage, artifact in sorted(artifacts.items()):
        manifest = artifact.path / MANIFEST
        digest, size = sha256_of_file(manifest), manifest.stat().st_size
        entries = {name: (f["sha256"], f["bytes"]) for name, f in artifact.manifest.files.items()}
        for name, (sha256, count) in {**entries, MANIFEST: (digest, size)}.items():
            files.setdefault(sha256, (Blob(sha256, count, f"{stage}/{name}"), artifact.path / name))
        total = artifact.manifest.bytes + size
        kept[stage] = Kept(artifact.kind, artifact.manifest.digest, digest, size, total)
    bundle, sent, new = Bundle(kept), _Count(), list[int]()
    blobs = [blob for blob, _ in files.values()]

    def send(blob: Blob, path: Path) -> None:
        if store.size(blob.sha256) == blob.bytes:
            sent.add(blob.bytes)
            return
        with path.open("rb") as source:
            store.put(blob, source, sent.add)
        new.append(blob.bytes)

    jobs = [partial(send, *entry) for entry in sorted(files.values(), key=lambda e: -e[0].bytes)]
    with _full(store.address), store.errors(), _altered(store):
        run_all(jobs, "push MiB", sum(blob.bytes for blob in blobs), lambda: sent.total)
        store.put(bundle.blob, BytesIO(bundle.text), _nobody)
        store.finish(bundle.blob, blobs)
    get_console().print(
        f"[green]✓[/] pushed to {store.address}: {len(blobs)} files, {_mib(sent.total)}, of which "
        f"{_mib(sum(new))} in {len(new)} files were not there yet",
        soft_wrap=True,
    )
    return bundle


def read_bundle(store: Store, digest: str) -> Bundle:
    """The list of a version's artifacts.

    Raises:
        ArtifactError: the store does not have it, or it is not what the digest says.
    """
    with store.errors():
        if (size := store.size(digest) or 0) > BUNDLE_BYTES:
            raise ArtifactError(f"{store.address}: {digest[:12]} is no list of files: {size} bytes")
        text = b"".join(store.read(digest))
    return Bundle.parse(text, digest, store.address)


def pull(store: Store, bundle: Bundle, stage: str, place: Path) -> Artifact:
    """An artifact of a version, in a folder: what is there already, or what the store has.

    Raises:
        ArtifactError: the version has no such artifact, or a file arrives with another digest.
        ConfigError: the folder holds something else. ResourceError: the disk is too small, or
        full. Busy: another process pulls the same. PipelineError: the store cannot be used.
    """
    kept = bundle.artifacts.get(stage)
    if kept is None:
        raise ArtifactError(
            f"the version was pushed without {stage}: it has {', '.join(bundle.artifacts)}"
        )
    place = place.absolute()
    there = _artifact_at(place, stage)
    if there and there.manifest.digest == kept.digest:
        get_console().print(f"[green]✓[/] {place} is up to date", soft_wrap=True)
        return there
    scratch = place.parent / f".{place.name}.{kept.digest[:16]}.pulling"
    with _full(str(scratch.parent)), _alone(scratch):
        _require_disk(scratch, kept)
        manifest = _fetch(store, kept, stage, scratch)
        _require_only(scratch, manifest)
        replace_folder(scratch, place, None)
        note_verified(place, manifest)
    made = open_artifact(place, stage=stage)
    get_console().print(
        f"[green]✓[/] pulled {stage} from {store.address}: {len(manifest.files)} files, "
        f"{_mib(kept.bytes)}, in {place}",
        soft_wrap=True,
    )
    return made


def _artifact_at(place: Path, stage: str) -> Artifact | None:
    """The artifact in a folder; None if nothing is there, or one that is altered or unfinished.

    Raises:
        ConfigError: something else is there.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return None
    if not (place / MANIFEST).is_file():
        raise ConfigError(f"{place} holds something else: give a new folder, or an empty one")
    try:
        return open_artifact(place, stage=stage)
    except ArtifactError:
        return None


def _fetch(store: Store, kept: Kept, stage: str, scratch: Path) -> Manifest:
    """Fetch what the scratch folder lacks; the manifest of it all."""
    first = Blob(kept.manifest, kept.manifest_bytes, f"{stage}/{MANIFEST}")
    count = _Count()
    with store.errors(), _altered(store):
        _take(store, first, scratch / MANIFEST, count.add)
    manifest = read_manifest(scratch, f"{AGAIN}, or push the version again")
    if manifest.digest != kept.digest or manifest.stage != stage:
        raise ArtifactError(
            f"{store.address} has another {stage} than the version names ({kept.digest[:12]})"
        )
    files = sorted(manifest.files.items(), key=lambda item: -item[1]["bytes"])
    jobs = [
        partial(
            _take, store, Blob(f["sha256"], f["bytes"], f"{stage}/{name}"), scratch / name,
            count.add,
        )
        for name, f in files
    ]  # fmt: skip
    with store.errors(), _altered(store):
        run_all(jobs, "pull MiB", kept.bytes, lambda: count.total)
    return manifest


def _take(store: Store, blob: Blob, file: Path, sent: Sent) -> None:
    """Fetch a blob into a file, from where an earlier try ended."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sha, size = hashlib.sha256(), 0
    with file.open("a+b") as target, _Syncing(target) as syncing:
        target.seek(0)
        while part := target.read(PART):
            sha.update(part)
            size += len(part)
        sent(min(size, blob.bytes))
        if size < blob.bytes:
            for part in store.read(blob.sha256, size):
                target.write(part)
                syncing.wrote(len(part))
                sha.update(part)
                size += len(part)
                sent(len(part))
                if size > blob.bytes:
                    break
    if size < blob.bytes:
        raise BrokeOff(f"{blob.title} ended after {size} of {blob.bytes} bytes")
    if sha.hexdigest() != blob.sha256:
        file.unlink()  # the next try begins anew
        raise Altered(blob.title)


class _Syncing:
    """Brings a file to the disk while it is written; when the block ends, it is there.

    A folder that appears must hold its files after a power failure, too, and waiting for the disk
    at the end would take as long again as the network does.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._new = stream, 0
        self._pool = ThreadPoolExecutor(1)  # starts no thread for a small file
        self._running: Future[None] | None = None

    def __enter__(self) -> _Syncing:
        return self

    def wrote(self, count: int) -> None:
        self._new += count
        if self._new >= SYNC_BYTES and (self._running is None or self._running.done()):
            self._new = 0
            self._running = self._pool.submit(os.fdatasync, self._stream.fileno())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            if self._running:
                self._running.result()
            self._stream.flush()
            os.fsync(self._stream.fileno())


@contextmanager
def _altered(store: Store) -> Iterator[None]:
    try:
        yield
    except Altered as error:
        raise ArtifactError(
            f"{error} differs from its digest on its way to or from {store.address}, so nothing "
            "was kept: run the same command again; if it differs again, run stage=verify where it "
            "was made, and push it to an empty store"
        ) from error


@contextmanager
def _full(folder: str) -> Iterator[None]:
    """Say whose disk is full. What arrived stays, for the next try."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ResourceError(
            f"the disk of {folder} is full: free some space, and {AGAIN}"
        ) from error


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Keep other pulls of the same artifact to the same folder out."""
    scratch.parent.mkdir(parents=True, exist_ok=True)
    lock = scratch.with_name(f"{scratch.name}.lock")
    with lock.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process pulls to {scratch}: wait for it") from None
        scratch.mkdir(exist_ok=True)
        yield
        lock.unlink()


def _require_disk(scratch: Path, kept: Kept) -> None:
    """Refuse before the first byte what the disk cannot hold."""
    there = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
    needed, free = kept.bytes - there + ROOM, free_disk_bytes(scratch)
    if needed > free:
        raise ResourceError(
            f"{scratch.parent} has {_mib(free)} free, and {_mib(needed)} are to come: free some "
            "space, or choose a folder on another disk, and run the same command again"
        )


def _require_only(scratch: Path, manifest: Manifest) -> None:
    """Remove what an earlier version of the same artifact's manifest named."""
    named = {scratch / name for name in (*manifest.files, MANIFEST)}
    for file in [file for file in scratch.rglob("*") if file.is_file() and file not in named]:
        file.unlink()


def _nobody(count: int) -> None:
    """Nobody counts these bytes."""


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
