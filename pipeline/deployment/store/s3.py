"""Blobs in S3, or in a store that speaks its protocol (AWS_ENDPOINT_URL), by boto3.

The store compares each part with its sha256 as it arrives; what a store has taken that does not say
so is compared by its MD5, or read back. A large blob is a multipart upload, and a later push keeps
the parts of one that was interrupted.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any, BinaryIO

from pipeline.deployment.store.blobs import (
    AGAIN,
    Altered,
    Blob,
    Missing,
    Sent,
    Store,
    parts,
)

UPLOAD_PART = 32 * 2**20  # S3 allows 10,000 parts of at least 5 MiB
MOST_PARTS = 10_000
AT_ONCE = 4  # parts of one blob
IN_MEMORY = 8  # parts of all blobs
READ = 2**20  # bytes at once: they stay in the cache until they are hashed, written or sent


class S3(Store):
    """bucket/prefix/blobs/sha256/<digest>"""

    def __init__(self, name: str) -> None:
        self.address = f"s3://{name}"
        self._bucket, _, prefix = name.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._room = threading.BoundedSemaphore(IN_MEMORY)

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        # One client for all threads: its connections are kept. It would hash each byte once more
        # both ways, although each part's sha256 is a signed header, and what arrives is compared
        # with its digest.
        config = Config(
            retries={"max_attempts": 3}, connect_timeout=10, max_pool_connections=4 * AT_ONCE,
            response_checksum_validation="when_required", s3={"payload_signing_enabled": False},
        )  # fmt: skip
        return boto3.client("s3", config=config)

    def _key(self, digest: str) -> str:
        return f"{self._prefix}blobs/sha256/{digest}"

    def size(self, digest: str) -> int | None:
        from botocore.exceptions import ClientError

        try:
            found = self._client.head_object(Bucket=self._bucket, Key=self._key(digest))
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound"):
                return None
            raise
        return int(found["ContentLength"])

    def put(self, blob: Blob, source: BinaryIO, sent: Sent) -> None:
        from botocore.exceptions import ClientError

        place = {"Bucket": self._bucket, "Key": self._key(blob.sha256)}
        size = max(UPLOAD_PART, -(-blob.bytes // MOST_PARTS))
        if blob.bytes <= size:
            self._put_whole(blob, source, place)
            sent(blob.bytes)
            return
        try:
            self._put_parts(blob, source, place, size, sent)
        except ClientError:
            # Another push of the same blob may have completed the upload that both wrote to.
            if self.size(blob.sha256) != blob.bytes:
                raise

    def _put_whole(self, blob: Blob, source: BinaryIO, place: Mapping[str, str]) -> None:
        checksum = _base64(bytes.fromhex(blob.sha256))
        with self._room:
            (content,) = parts(source, blob, max(blob.bytes, 1))
            answer = self._client.put_object(**place, Body=content, **_checked_by(checksum))
            compared = _compared(answer, content, checksum)
        if not compared:
            self._read_back(blob)

    def _put_parts(
        self, blob: Blob, source: BinaryIO, place: Mapping[str, str], size: int, sent: Sent
    ) -> None:
        upload, there = self._resume(place, size)
        done: dict[int, dict[str, Any]] = {}
        running: set[Future[None]] = set()
        unsure: list[int] = []  # parts that the store does not say it has compared

        def send(number: int, content: bytearray, checksum: str) -> None:
            try:
                done[number], compared = self._part(
                    place, upload, number, content, checksum, there.get(number)
                )
            finally:
                self._room.release()
            if not compared:
                unsure.append(number)
            sent(len(content))

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                hashed = _hashed_parts(source, blob, size)
                for number in range(1, -(-blob.bytes // size) + 1):
                    if len(running) >= AT_ONCE:
                        ended, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in ended:
                            future.result()
                    self._room.acquire()
                    try:
                        content, checksum = next(hashed)
                        running.add(pool.submit(send, number, content, checksum))
                    except BaseException:
                        self._room.release()
                        raise
                for future in running:
                    future.result()
        except Altered:
            self._client.abort_multipart_upload(**place, UploadId=upload)
            raise
        made = {"Parts": [done[number] for number in sorted(done)]}
        self._client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload=made)
        if self.size(blob.sha256) != blob.bytes:
            raise Altered(blob.title)
        if unsure:
            self._read_back(blob)

    def _resume(self, place: Mapping[str, str], size: int) -> tuple[str, dict[int, str]]:
        """An upload of this blob that was begun, and the MD5s of its parts; else a new one."""
        from botocore.exceptions import ClientError

        try:
            begun = self._client.list_multipart_uploads(Bucket=place["Bucket"], Prefix=place["Key"])
        except ClientError as error:
            if _status(error) not in (405, 501):
                raise
            begun = {}  # a store that does not list them
        for upload in begun.get("Uploads", ()):
            if upload["Key"] == place["Key"]:
                pages = self._client.get_paginator("list_parts").paginate(
                    **place, UploadId=upload["UploadId"]
                )
                found = [part for page in pages for part in page.get("Parts", ())]
                return upload["UploadId"], {
                    part["PartNumber"]: part["ETag"] for part in found if part["Size"] <= size
                }
        new = self._client.create_multipart_upload(**place, ChecksumAlgorithm="SHA256")
        return new["UploadId"], {}

    def _part(
        self,
        place: Mapping[str, str],
        upload: str,
        number: int,
        content: bytearray,
        checksum: str,
        there: str | None,
    ) -> tuple[dict[str, Any], bool]:
        """Upload a part, unless the store has it: its ETag is its MD5, or of an encrypted bucket
        something else, and then it is sent again.

        Returns:
            What completes the upload, and whether the store has what was sent.
        """
        etag, compared = there, True
        if etag is None or not _is_md5(etag, content):
            answer = self._client.upload_part(
                **place, UploadId=upload, PartNumber=number, Body=content, **_checked_by(checksum)
            )
            etag, compared = answer["ETag"], _compared(answer, content, checksum)
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}, compared

    def _read_back(self, blob: Blob) -> None:
        """Compare what the store has with the digest."""
        sha = hashlib.sha256()
        for part in self.read(blob.sha256):
            sha.update(part)
        if sha.hexdigest() != blob.sha256:
            self._client.delete_object(Bucket=self._bucket, Key=self._key(blob.sha256))
            raise Altered(blob.title)

    def read(self, digest: str, begin: int = 0) -> Iterator[bytes]:
        from botocore.exceptions import ClientError

        wanted = {"Range": f"bytes={begin}-"} if begin else {}
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(digest), **wanted)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                raise Missing(digest[:12]) from error
            raise
        yield from answer["Body"].iter_chunks(READ)

    def close(self) -> None:
        self._client.close()

    def explain(self, error: Exception) -> str | None:
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return (
                "needs credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if isinstance(error, exceptions.ClientError):
            status = _status(error)
            if status in (401, 403):
                return f"may not be used ({status}): give credentials (AWS_PROFILE) that may"
            if status in (301, 404):
                return (
                    "does not exist, or is in another region: correct the bucket, or set AWS_REGION"
                )
            return f"refused ({status}, {error.response.get('Error', {}).get('Code')}): {AGAIN}"
        if isinstance(error, exceptions.BotoCoreError | exceptions.HTTPClientError):
            return (
                f"cannot be reached ({type(error).__name__}): check the network and "
                f"AWS_ENDPOINT_URL, and {AGAIN}"
            )
        if _is_network(error):
            return f"broke off ({type(error).__name__}): {AGAIN}"
        return None


def _is_network(error: Exception) -> bool:
    """urllib3's errors of a body that breaks off, and the system's."""
    return type(error).__module__.startswith("urllib3") or isinstance(error, ConnectionError)


def _status(error: Any) -> int:
    """The HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _hashed_parts(source: BinaryIO, blob: Blob, size: int) -> Iterator[tuple[bytearray, str]]:
    """The content of a file in parts, each with its sha256 in Base64. The last one comes only if
    all are what the blob's digest says.

    Raises:
        Altered: the file has other bytes.
    """
    whole, left = hashlib.sha256(), blob.bytes
    while left:
        content, own, end = bytearray(min(size, left)), hashlib.sha256(), 0
        with memoryview(content) as view:
            while count := source.readinto(view[end : end + READ]):  # type: ignore[attr-defined]
                piece = view[end : end + count]
                whole.update(piece)
                own.update(piece)
                end += count
        left -= len(content)
        complete = left or (not source.read(1) and whole.hexdigest() == blob.sha256)
        if end < len(content) or not complete:
            raise Altered(blob.title)
        yield content, _base64(own.digest())


def _checked_by(checksum: str) -> dict[str, str]:
    """Has the store compare what arrives with its sha256."""
    return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum}


def _compared(answer: Mapping[str, Any], content: bytes | bytearray, checksum: str) -> bool:
    """Whether the store says that it has what was sent: by its sha256, else by its MD5."""
    if answer.get("ChecksumSHA256") == checksum:
        return True
    return _is_md5(answer.get("ETag", ""), content)


def _is_md5(etag: str, content: bytes | bytearray) -> bool:
    return etag.strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
