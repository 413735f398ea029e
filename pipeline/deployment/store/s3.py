"""Blobs in S3, or in a store that speaks its protocol (AWS_ENDPOINT_URL), by boto3.

The store compares each part with its sha256 as it arrives. A large blob is a multipart upload, and
a later push keeps the parts of one that was interrupted.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any, BinaryIO

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

UPLOAD_PART = 32 * 2**20  # S3 allows 10,000 parts of at least 5 MiB
MOST_PARTS = 10_000
AT_ONCE = 4  # parts of one blob


class S3(Store):
    """bucket/prefix/blobs/sha256/<digest>"""

    def __init__(self, name: str) -> None:
        self.address = f"s3://{name}"
        self._bucket, _, prefix = name.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        # One client for all threads: its connections are kept.
        config = Config(
            retries={"max_attempts": 3}, connect_timeout=10, max_pool_connections=4 * AT_ONCE
        )
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
            (content,) = parts(source, blob, size)
            self._client.put_object(**place, Body=content, ChecksumSHA256=_checksum(content))
            sent(blob.bytes)
            return
        try:
            self._put_parts(blob, source, place, size, sent)
        except ClientError:
            # Another push of the same blob may have completed the upload that both wrote to.
            if self.size(blob.sha256) != blob.bytes:
                raise

    def _put_parts(
        self, blob: Blob, source: BinaryIO, place: Mapping[str, str], size: int, sent: Sent
    ) -> None:
        upload, there = self._resume(place, size)
        numbered: list[dict[str, Any]] = []
        waiting: set[Future[dict[str, Any]]] = set()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for number, content in enumerate(parts(source, blob, size), 1):
                    if len(waiting) >= AT_ONCE:
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        numbered += [future.result() for future in done]
                    waiting.add(
                        pool.submit(
                            self._part, place, upload, number, content, there.get(number), sent
                        )
                    )
                numbered += [future.result() for future in waiting]
        except Altered:
            self._client.abort_multipart_upload(**place, UploadId=upload)
            raise
        self._complete(place, upload, numbered, blob)

    def _complete(
        self, place: Mapping[str, str], upload: str, numbered: list[dict[str, Any]], blob: Blob
    ) -> None:
        made = {"Parts": sorted(numbered, key=lambda part: part["PartNumber"])}
        self._client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload=made)
        if self.size(blob.sha256) != blob.bytes:
            raise Altered(blob.title)

    def _resume(self, place: Mapping[str, str], size: int) -> tuple[str, dict[int, str]]:
        """An upload of this blob that was begun, and the checksums of its parts; else a new one."""
        begun = self._client.list_multipart_uploads(Bucket=place["Bucket"], Prefix=place["Key"])
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
        content: bytes,
        there: str | None,
        sent: Sent,
    ) -> dict[str, Any]:
        """Upload a part, unless the store has it: its ETag is its MD5, or of an encrypted bucket
        something else, and then it is sent again."""
        checksum = _checksum(content)
        etag = there
        if (
            there is None
            or there.strip('"') != hashlib.md5(content, usedforsecurity=False).hexdigest()
        ):
            answer = self._client.upload_part(
                **place, UploadId=upload, PartNumber=number, Body=content, ChecksumSHA256=checksum
            )
            etag = answer["ETag"]
        sent(len(content))
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}

    def read(self, digest: str, begin: int = 0) -> Iterator[bytes]:
        from botocore.exceptions import ClientError

        wanted = {"Range": f"bytes={begin}-"} if begin else {}
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(digest), **wanted)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                raise Missing(digest[:12]) from error
            raise
        yield from answer["Body"].iter_chunks(PART)

    def close(self) -> None:
        self._client.close()

    def explain(self, error: Exception) -> str | None:
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return (
                "needs credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if isinstance(error, exceptions.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
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


def _checksum(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()
