"""Blobs in MLflow's artifact store, through an MLflow server that serves artifacts.

They lie below the experiment's artifacts, beside those of its runs. The protocol has no checksums,
so what was sent is read back and compared. A file is the least that is sent again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import BinaryIO

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
from pipeline.tracking.mlflow_http import Server

SECONDS = 600.0  # the server passes a file on before it answers


class MlflowFiles(Store):
    """experiment/blobs/sha256/<digest>. path: of the experiment's artifacts, below the server's."""

    def __init__(self, server: Server, path: str) -> None:
        self.address = f"mlflow-artifacts:/{path}"
        self._client, self._folder = server.new_client(), f"{path}/blobs/sha256"
        self._url = f"{server.uri}/api/2.0/mlflow-artifacts/artifacts"
        self._sizes: dict[str, int] | None = None
        self._lock = threading.Lock()

    def size(self, digest: str) -> int | None:
        with self._lock:
            if self._sizes is None:
                answer = self._client.get(self._url, params={"path": self._folder})
                answer.raise_for_status()
                self._sizes = {
                    file["path"].rpartition("/")[2]: int(file.get("file_size") or 0)
                    for file in answer.json().get("files", ())
                }
            return self._sizes.get(digest)

    def put(self, blob: Blob, source: BinaryIO, sent: Sent) -> None:
        def content() -> Iterator[bytes]:
            for part in parts(source, blob):
                yield part
                sent(len(part))

        answer = self._client.put(
            f"{self._url}/{self._folder}/{blob.sha256}",
            content=content(),
            headers={"Content-Type": "application/octet-stream"},
            timeout=SECONDS,
        )
        answer.raise_for_status()
        sha = hashlib.sha256()
        for part in self.read(blob.sha256):
            sha.update(part)
        if sha.hexdigest() != blob.sha256:
            raise Altered(blob.title)
        with self._lock:
            if self._sizes is not None:
                self._sizes[blob.sha256] = blob.bytes

    def read(self, digest: str, begin: int = 0) -> Iterator[bytes]:
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        url = f"{self._url}/{self._folder}/{digest}"
        with self._client.stream("GET", url, headers=headers, timeout=SECONDS) as answer:
            if answer.status_code == 404:
                raise Missing(digest[:12])
            answer.raise_for_status()
            skip = begin if answer.status_code == 200 else 0
            for part in answer.iter_bytes(PART):
                kept = part[skip:]
                skip = max(0, skip - len(part))
                if kept:
                    yield kept

    def close(self) -> None:
        self._client.close()

    def explain(self, error: Exception) -> str | None:
        import httpx

        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            if status in (401, 403):
                return (
                    f"may not be used ({status}): set MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD"
                )
            return (
                f"refused ({status}): start the server with --artifacts-destination, see its log, "
                f"and {AGAIN}"
            )
        if isinstance(error, httpx.HTTPError):
            return (
                f"cannot be reached ({type(error).__name__}): check MLFLOW_TRACKING_URI and the "
                f"server, and {AGAIN}"
            )
        return None
