"""Blobs in a folder: of this machine, or of a file server that several machines mount."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.deployment.store.blobs import PART, Altered, Blob, Missing, Sent, Store, parts


class Folder(Store):
    """root/blobs/sha256/<digest>, as in an OCI image layout."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.address = str(self._root)

    def _place(self, digest: str) -> Path:
        return self._root / "blobs" / "sha256" / digest

    def size(self, digest: str) -> int | None:
        try:
            return self._place(digest).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, blob: Blob, source: BinaryIO, sent: Sent) -> None:
        """What an earlier push left unfinished is checked, and kept as far as it is right."""
        place = self._place(blob.sha256)
        unfinished = place.with_name(f"{blob.sha256}.partial")
        place.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("a+b") as target:
            fcntl.flock(target, fcntl.LOCK_EX)  # of two pushes one waits, and finds it done
            if place.exists():
                sent(blob.bytes)
            else:
                try:
                    _copy(source, blob, target, sent)
                except Altered:
                    target.truncate(0)
                    raise
                os.fsync(target.fileno())
                unfinished.replace(place)
                return
        with suppress(FileNotFoundError):
            unfinished.unlink()

    def read(self, digest: str, begin: int = 0) -> Iterator[bytes]:
        try:
            stream = self._place(digest).open("rb")
        except FileNotFoundError:
            raise Missing(digest[:12]) from None
        with stream:
            stream.seek(begin)
            while part := stream.read(PART):
                yield part

    def explain(self, error: Exception) -> str | None:
        if not isinstance(error, OSError):
            return None
        return (
            f"cannot be used ({error.strerror or error}): allow it, mount it, or give another "
            "folder in register.store"
        )


def _copy(source: BinaryIO, blob: Blob, target: BinaryIO, sent: Sent) -> None:
    """Copy what the target lacks. What it has is compared with the source, as it may be of another
    push that was killed while it wrote."""
    target.seek(0)
    same = True
    for part in parts(source, blob):
        if same:
            there = target.read(len(part))
            same = there == part
            if not same:
                target.seek(-len(there), os.SEEK_CUR)
                target.truncate()
        if not same:
            target.write(part)
        sent(len(part))
    target.truncate()
    target.flush()
