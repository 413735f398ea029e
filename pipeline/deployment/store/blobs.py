"""What a store does: keep blobs by their sha256, and give them back."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from pipeline.core.artifact import Count, Name, Sha256
from pipeline.core.errors import ArtifactError, PipelineError

PART = 8 * 2**20  # bytes that are read at once
AGAIN = "run the same command again to resume"
Sent = Callable[[int], None]  # is called with the number of bytes that have gone
BUNDLE_BYTES = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)


class Missing(Exception):
    """A store has no such blob."""


class Altered(Exception):
    """A file is not what its digest says."""


class BrokeOff(Exception):
    """A store ended a blob before its last byte."""


@dataclass(frozen=True)
class Blob:
    """A file of a version. title: its path below the version, for stores that keep one."""

    sha256: str
    bytes: int
    title: str = ""


class Store:
    """A place for blobs. What it raises of its own, `errors()` turns into one message.

    address: as users write it. It holds no secret.
    """

    address: str

    def size(self, digest: str) -> int | None:
        """Bytes of a blob that the store holds whole; None if it does not."""
        raise NotImplementedError

    def put(self, blob: Blob, source: BinaryIO, sent: Sent) -> None:
        """Store a blob, whole or not at all, and make sure that the store has what was sent.

        Raises:
            Altered: the source, or what the store has of it, differs from the digest.
        """
        raise NotImplementedError

    def read(self, digest: str, begin: int = 0) -> Iterator[bytes]:
        """A blob's bytes from one on.

        Raises:
            Missing: the store does not have it.
        """
        raise NotImplementedError

    def finish(self, bundle: Blob, blobs: Sequence[Blob]) -> None:
        """Everything of a version is stored. bundle: the list of it; blobs: the files."""

    def close(self) -> None:
        """Close the connections."""

    def explain(self, error: Exception) -> str | None:
        """What is wrong with the store and what to do; None for an error that is not the store's.

        It follows the store's address in the message.
        """
        raise NotImplementedError

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise what a client raises as a PipelineError of one line."""
        try:
            yield
        except PipelineError:
            raise
        except Missing as error:
            raise ArtifactError(
                f"{self.address} has no {error}: it was deleted there, or the version was pushed "
                "to another store (register.store=…)"
            ) from error
        except BrokeOff as error:
            raise PipelineError(f"{self.address} broke off: {error}: {AGAIN}") from error
        except Exception as error:
            if getattr(error, "errno", None) in FULL:
                raise  # whose disk it is, the caller knows
            if text := self.explain(error):
                raise PipelineError(f"{self.address} {text}") from error
            raise


@dataclass(frozen=True)
class Kept:
    """An artifact of a version. digest: Manifest.digest. manifest: the blob of its manifest file,
    which names all others. bytes: of all its files."""

    kind: Name
    digest: Sha256
    manifest: Sha256
    manifest_bytes: Count
    bytes: Count


@dataclass(frozen=True)
class Bundle:
    """The artifacts of a version, by stage."""

    artifacts: Mapping[Name, Kept]
    schema: int = 1

    @property
    def text(self) -> bytes:
        content = _BUNDLE.dump_python(self, mode="json")
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @property
    def blob(self) -> Blob:
        return Blob(hashlib.sha256(self.text).hexdigest(), len(self.text), "version.json")

    @classmethod
    def parse(cls, text: bytes, digest: str, address: str) -> Bundle:
        """
        Raises:
            ArtifactError: it is not what the digest says, or is of another version of the pipeline.
        """
        if hashlib.sha256(text).hexdigest() != digest:
            raise ArtifactError(
                f"{address}: the list of the version's files differs from its digest "
                f"{digest[:12]}: push the version again with stage=register where it was made"
            )
        try:
            content: Any = json.loads(text)
            if content["schema"] != 1:
                raise ArtifactError(
                    f"{address}: version {digest[:12]} was pushed by a later version of the "
                    "pipeline: use that"
                )
            return _BUNDLE.validate_python(content)
        except (ValidationError, ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(
                f"{address}: {digest[:12]} is not the list of a version's files "
                f"({type(error).__name__})"
            ) from error


_BUNDLE = TypeAdapter(Bundle)


def parts(source: BinaryIO, blob: Blob, size: int = PART) -> Iterator[bytes]:
    """The content of a file in parts. The last one comes only if all are what the digest says.

    Raises:
        Altered: the file has other bytes.
    """
    sha, left = hashlib.sha256(), blob.bytes
    while True:
        part = source.read(min(size, left)) if left else b""
        sha.update(part)
        left -= len(part)
        if left and part:
            yield part
            continue
        if left or source.read(1) or sha.hexdigest() != blob.sha256:
            raise Altered(blob.title)
        yield part
        return
