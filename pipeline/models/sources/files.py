"""Which of a source's files are fetched, and whether they arrived as they were sent."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from pipeline.core.artifact import sha256_of_file
from pipeline.core.errors import DataError
from pipeline.models.files import CONFIGS, TOKENIZER_FILES, WEIGHTS, WEIGHTS_INDEX, read_json
from pipeline.models.sources.address import Address

_PART = 2**20  # bytes that are read at once
_LOOK = 0.02  # seconds from one look for new bytes to the next


@dataclass(frozen=True)
class Remote:
    """A file of a source. bytes: its size. version: what changes with its content, as an ETag.

    digest: what the place says of its content: a sha256 of 64 digits, or git's sha1 of 40; else "".
    """

    name: str
    bytes: int
    version: str = ""
    digest: str = ""


def cache_folder(address: Address, revision: str) -> Path:
    """The folder of our own cache for a revision of a source."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = quote(address.name, safe="")
    if len(name) > 200:  # a file system takes 255
        name = f"{name[-150:]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return root / "finetune-to-serve" / "sources" / address.scheme / name / revision


def described(names: Iterable[str]) -> list[str]:
    """Of a source's files those that say what the model is: configuration, tokenizer, index."""
    known = set(names)
    return [name for name in (*CONFIGS, *TOKENIZER_FILES, WEIGHTS_INDEX) if name in known]


def weights(names: Iterable[str], index: Path, address: object) -> list[str]:
    """Of a source's files the safetensors that hold the model.

    index: the index of its shards, where it has one, fetched before.

    Raises:
        DataError: there are none, or the index names others than the source has.
    """
    known = set(names)
    if WEIGHTS_INDEX in known:
        content = read_json(index, f"{address} is damaged: use another revision")
        named = content.get("weight_map")
        shards = set(named.values()) if isinstance(named, Mapping) else set()
        if not shards or not shards <= known:
            missing = next((str(s) for s in shards if s not in known), "no files")
            raise DataError(
                f"{address}: {WEIGHTS_INDEX} names {missing:.100}, which is not there: use another "
                "revision"
            )
        return sorted(shards)
    if WEIGHTS in known:
        return [WEIGHTS]
    raise DataError(f"{address} has no {WEIGHTS}: {_instead(known)}")


def _instead(names: set[str]) -> str:
    """What the source has in place of weights, and what to do."""
    if "adapter_config.json" in names:
        return "it is an adapter; give the model that its card names as its base"
    for ending, what in ((".bin", "pickles"), (".gguf", "GGUF"), (".nemo", "a NeMo archive")):
        if any(name.endswith(ending) for name in names):
            return (
                f"it has {what}, and only safetensors are fetched; use a revision or another copy "
                "of the model with safetensors"
            )
    return "give a model that was saved with save_pretrained(folder)"


class GrowingDigest:
    """The sha256 of a file that another thread writes meanwhile, from its first byte on.

    So the digest is there when the file is, and its bytes are read while the memory still has them.
    """

    def __init__(self, place: Path) -> None:
        """place: of the file, which need not be there yet. It may be renamed once it is whole."""
        self._place, self._whole = place, threading.Event()
        self._sha, self._read = hashlib.sha256(), 0
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def finish(self) -> tuple[str, int]:
        """The digest and the number of bytes that it is of, once the file is whole: fewer than it
        has if it was not written from its first byte to its last one."""
        self._whole.set()
        self._thread.join()
        return self._sha.hexdigest(), self._read

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_PART))
        stream: BinaryIO | None = None
        try:
            while True:
                last = self._whole.is_set()
                if stream is None:
                    with suppress(OSError):
                        stream = self._place.open("rb", buffering=0)
                while stream is not None and (size := stream.readinto(buffer)):  # type: ignore[attr-defined]
                    self._sha.update(buffer[:size])
                    self._read += size
                if last:
                    return
                self._whole.wait(_LOOK)
        finally:
            if stream is not None:
                stream.close()


def digest_of(file: Path, like: str) -> str:
    """The digest of a file in the form of `like`: git's sha1 of 40 digits, else sha256."""
    if len(like) != 40:
        return sha256_of_file(file)
    sha = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            sha.update(part)
    return sha.hexdigest()


def entry(sha256: str, size: int) -> dict[str, Any]:
    """A fetched file, as an artifact's manifest describes one."""
    return {"sha256": sha256, "bytes": size}
