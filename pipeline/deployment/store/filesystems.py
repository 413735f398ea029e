"""Blobs in Google Cloud Storage and Azure Blob Storage, by fsspec's file systems.

Their libraries read the credentials of the environment. What was written is read back and compared,
since not each of these file systems checks what it sends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.core.errors import MissingRuntime
from pipeline.deployment.store.blobs import (
    AGAIN,
    PART,
    Altered,
    Blob,
    Missing,
    Sent,
    Store,
    parts,
)

# The distribution that brings a file system, and the variables with its credentials.
LIBRARIES = {
    "gs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("adlfs", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
}


def open_filesystem(scheme: str, name: str) -> Filesystem:
    """
    Raises:
        MissingRuntime: the library of the file system is not installed.
    """
    from pipeline.core.hardware import installed_version

    library, _ = LIBRARIES[scheme]
    if not installed_version(library):
        raise MissingRuntime(
            f"register.store={scheme}://{name} needs {library}, which is not installed: install "
            f"the release that fits fsspec {installed_version('fsspec')} (`pip install {library}`)"
        )
    import fsspec

    return Filesystem(fsspec.filesystem(scheme), scheme, name)


class Filesystem(Store):
    """root/blobs/sha256/<digest>; a blob appears when it is whole."""

    def __init__(self, system: Any, scheme: str, name: str) -> None:
        self.address = f"{scheme}://{name}"
        self._system, self._scheme, self._root = system, scheme, name

    def _key(self, digest: str) -> str:
        return f"{self._root}/blobs/sha256/{digest}"

    def size(self, digest: str) -> int | None:
        self._system.invalidate_cache()
        try:
            return int(self._system.info(self._key(digest))["size"])
        except FileNotFoundError:
            return None

    def put(self, blob: Blob, source: BinaryIO, sent: Sent) -> None:
        key = self._key(blob.sha256)
        try:
            with self._system.open(key, "wb", block_size=PART) as stream:
                for part in parts(source, blob):
                    stream.write(part)
                    sent(len(part))
        except Altered:
            self._system.rm_file(key)
            raise
        sha = hashlib.sha256()
        for part in self.read(blob.sha256):
            sha.update(part)
        if sha.hexdigest() != blob.sha256:
            self._system.rm_file(key)
            raise Altered(blob.title)

    def read(self, digest: str, begin: int = 0) -> Iterator[bytes]:
        self._system.invalidate_cache()
        try:
            stream = self._system.open(self._key(digest), "rb", block_size=PART)
        except FileNotFoundError:
            raise Missing(digest[:12]) from None
        with stream:
            stream.seek(begin)
            while part := stream.read(PART):
                yield part

    def explain(self, error: Exception) -> str | None:
        variables = LIBRARIES[self._scheme][1]
        if isinstance(error, FileNotFoundError):
            return "does not exist: correct the bucket"
        if isinstance(error, PermissionError):
            return f"may not be used: set {variables}"
        module = type(error).__module__.partition(".")[0]
        known = ("gcsfs", "adlfs", "azure", "google", "aiohttp", "fsspec")
        if isinstance(error, OSError) or module in known:
            return (
                f"cannot be used ({type(error).__name__}): check the network and {variables}, and "
                f"{AGAIN}"
            )
        return None
