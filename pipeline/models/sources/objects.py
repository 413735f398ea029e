"""Files of object stores: S3 by boto3, Google Cloud Storage by gcsfs, into a cache of our own.

    $XDG_CACHE_HOME/finetune-to-serve/sources/s3/<bucket and prefix>/<revision>/

Credentials and endpoints are those of the clients (AWS_PROFILE, AWS_ENDPOINT_URL ...). A store has
no commits: a revision here is the digest of its list of files with their sizes and versions, and a
file is read only in the version that was listed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.core import extras
from pipeline.core.artifact import sha256_of_json
from pipeline.core.errors import DataError, PipelineError, ResourceError, short
from pipeline.models.sources.address import Address
from pipeline.models.sources.files import (
    GrowingDigest,
    Remote,
    cache_folder,
    described,
    digest_of,
    entry,
)
from pipeline.models.sources.transfer import run_all

PART = 2**20  # bytes that are read at once; many more are new memory each time, cleared first
BLOCK = 8 * PART  # bytes that fsspec asks a store for at once
_AGAIN = "run the same command again to resume"


class Changed(Exception):
    """A file of the store has another version than when it was listed."""


class Store(Protocol):
    """What differs from store to store."""

    def list(self, *, deep: bool) -> list[Remote]:
        """The files at the address. deep: those in folders below it, too."""

    def read(self, file: Remote, begin: int) -> Iterator[bytes]:
        """A file's bytes from one on. Raises Changed if it has another version than listed."""

    def explain(self, error: Exception) -> str | None:
        """What is wrong and what to do; None for an error that is not the store's."""


class Objects:
    """Files below a prefix of a bucket.

    chosen: of all names of files below the address those that count; None: those directly there of
    which a model consists.
    """

    def __init__(
        self,
        address: Address,
        store: Store | None = None,
        chosen: Callable[[Iterable[str]], Sequence[str]] | None = None,
        setting: str = "model.path",
        records: str = "artifacts/.sources.json",
    ) -> None:
        self.address = address
        self._store = store or (
            S3(address) if address.scheme == "s3" else _google(address, setting)
        )
        self._chosen, self._records = chosen, records
        self._listed: dict[str, Remote] | None = None

    def resolve(self) -> str:
        files = self._list()
        if self._chosen is None:
            known = {name for name in files if name.endswith(".safetensors")} | {*described(files)}
        else:
            known = {*self._chosen(files)}
        listing = {name: [files[name].bytes, files[name].version] for name in sorted(known)}
        return sha256_of_json(listing)

    def files(self, revision: str) -> Mapping[str, Remote]:
        files = self._list()
        if self.resolve() != revision:
            raise DataError(
                f"{self.address} changed since it was recorded: remove its entry from "
                f"{self._records} to take what is there now"
            )
        return files

    def folder(self, revision: str) -> Path:
        return cache_folder(self.address, revision)

    def get(self, revision: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        folder, files = self.folder(revision), self.files(revision)
        found: dict[str, dict[str, Any]] = {}
        jobs = [partial(self._take, folder, files[name], found)
                for name in sorted(names, key=lambda name: -files[name].bytes)]  # fmt: skip
        total = sum(files[name].bytes for name in names)

        def arrived() -> int:
            return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

        with self._errors(folder):
            for place in (folder, *((folder / name).parent for name in names)):
                place.mkdir(parents=True, exist_ok=True)
            run_all(jobs, f"fetch {short(str(self.address), 40)} MiB", total, arrived)
        return {name: found[name] for name in names}

    def _take(self, folder: Path, remote: Remote, found: dict[str, dict[str, Any]]) -> None:
        """Fetch one file, from where an earlier try ended, and note its digest."""
        file = folder / remote.name
        place = file if file.exists() else folder / f"{remote.name}.partial"
        growing = GrowingDigest(place)
        try:
            with place.open("ab" if place is not file else "rb", buffering=0) as stream:
                begin = place.stat().st_size
                if place is not file and begin < remote.bytes:
                    for part in self._store.read(remote, begin):
                        stream.write(part)
        finally:
            sha256, read = growing.finish()
        if (size := place.stat().st_size) != remote.bytes:
            if size > remote.bytes:
                place.unlink()
            raise DataError(
                f"{self.address}: {remote.name} arrived with {size} bytes of {remote.bytes}: "
                f"{_AGAIN}"
            )
        if read != size:  # written by another process meanwhile
            sha256 = digest_of(place, "")
        place.replace(file)
        found[remote.name] = entry(sha256, size)

    def _list(self) -> dict[str, Remote]:
        if self._listed is None:
            with self._errors(None):
                found = self._store.list(deep=self._chosen is not None)
                self._listed = {file.name: file for file in found if _is_plain(file.name)}
            if not self._listed:
                raise DataError(
                    f"{self.address}: there are no files below it: correct the bucket or the prefix"
                )
        return self._listed

    @contextmanager
    def _errors(self, folder: Path | None) -> Iterator[None]:
        """Raise what a client raises as an error of one line."""
        try:
            yield
        except PipelineError:
            raise
        except Changed as error:
            raise DataError(
                f"{self.address}: {error} changed while it was read: run the same command again "
                "when nothing writes there"
            ) from error
        except Exception as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) and folder:
                raise ResourceError(
                    f"the disk of {folder} is full: free some space, or set XDG_CACHE_HOME to a "
                    f"folder on another disk, and {_AGAIN}"
                ) from error
            if text := self._store.explain(error):
                raise DataError(f"{self.address} {text}") from error
            raise


def _is_plain(name: str) -> bool:
    """Whether a name in a bucket is one of a file below a folder: it may hold anything."""
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


class S3:
    """A bucket of S3, or of a store that speaks its protocol (AWS_ENDPOINT_URL)."""

    def __init__(self, address: Address) -> None:
        self._bucket, _, prefix = address.name.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client("s3", config=Config(retries={"max_attempts": 3}, connect_timeout=10))

    def list(self, *, deep: bool) -> list[Remote]:
        pages = self._client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self._bucket, Prefix=self._prefix)
        return [
            Remote(item["Key"].removeprefix(self._prefix), item["Size"], item["ETag"])
            for page in found
            for item in page.get("Contents", ())
            if deep or "/" not in item["Key"].removeprefix(self._prefix)
        ]

    def read(self, file: Remote, begin: int) -> Iterator[bytes]:
        from botocore.exceptions import ClientError

        wanted = {"Range": f"bytes={begin}-"} if begin else {}
        key = self._prefix + file.name
        try:
            answer = self._client().get_object(
                Bucket=self._bucket, Key=key, IfMatch=file.version, **wanted
            )
        except ClientError as error:
            if _status(error) in (404, 412):
                raise Changed(file.name) from error
            raise
        yield from answer["Body"].iter_chunks(PART)

    def explain(self, error: Exception) -> str | None:
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return (
                "needs credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if isinstance(error, exceptions.ClientError):
            status = _status(error)
            if status in (401, 403):
                return f"may not be read ({status}): use credentials (AWS_PROFILE) that may read it"
            if status in (301, 404):
                return (
                    "does not exist, or is in another region: correct the bucket, or set AWS_REGION"
                )
            return f"cannot be read: the store answered {status}: wait, and {_AGAIN}"
        if isinstance(error, exceptions.BotoCoreError):
            return (
                f"cannot be reached ({type(error).__name__}): check the network and "
                f"AWS_ENDPOINT_URL, and {_AGAIN}"
            )
        return None


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


class FileSystem:
    """A file system of fsspec. prefix: the folder of the files in it."""

    def __init__(self, system: Any, prefix: str) -> None:
        self._system, self._prefix = system, prefix

    def list(self, *, deep: bool) -> list[Remote]:
        self._system.invalidate_cache()
        depth = None if deep else 1
        found = self._system.find(self._prefix, maxdepth=depth, detail=True).values()
        above = self._prefix.strip("/") + "/"
        return [
            Remote(item["name"].lstrip("/").removeprefix(above), item["size"],
                   self._system.ukey(item["name"]))
            for item in found
            if item["type"] == "file"
        ]  # fmt: skip

    def read(self, file: Remote, begin: int) -> Iterator[bytes]:
        path = f"{self._prefix}/{file.name}"
        self._same(path, file)
        with self._system.open(path, "rb", block_size=BLOCK) as stream:
            stream.seek(begin)
            while part := stream.read(PART):
                yield part
        self._same(path, file)

    def _same(self, path: str, file: Remote) -> None:
        self._system.invalidate_cache()
        if self._system.ukey(path) != file.version:
            raise Changed(file.name)

    def explain(self, error: Exception) -> str | None:
        if isinstance(error, FileNotFoundError):
            return "does not exist: correct the bucket or the prefix"
        if isinstance(error, PermissionError):
            return "may not be read: use credentials (GOOGLE_APPLICATION_CREDENTIALS) that may"
        code = getattr(error, "code", None)
        if isinstance(error, OSError) or code:
            reason = code or type(error).__name__
            return f"cannot be read ({reason}): check the network and the credentials, and {_AGAIN}"
        return None


def _google(address: Address, setting: str) -> Store:
    extras.require("gcs", f"{setting}={address}", "copy the files and give their folder")
    import fsspec

    return FileSystem(fsspec.filesystem("gs"), address.name)
