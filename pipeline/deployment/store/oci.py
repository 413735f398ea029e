"""Blobs in a container registry, by the OCI distribution protocol, as ORAS uses it.

A version is an artifact of its own there: `oras pull HOST/NAME:bundle-<digest>` writes its files.
The registry compares each blob with its digest before it takes it. Credentials are those that
`docker login` or `oras login` wrote (DOCKER_CONFIG), or OCI_USERNAME and OCI_PASSWORD.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urljoin

from pipeline.core.errors import ConfigError
from pipeline.deployment.store.blobs import AGAIN, PART, Blob, Missing, Sent, Store, parts

if TYPE_CHECKING:
    import httpx

CHUNK = 64 * 2**20
TRIES = 3  # of a chunk whose connection broke
SECONDS = 60.0
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
VERSION = "application/vnd.finetune-to-serve.version.v1+json"  # artifactType of a version
LAYER = "application/octet-stream"
TITLE = "org.opencontainers.image.title"  # where ORAS writes a layer


class Oci(Store):
    """A repository of a registry: HOST[:PORT]/NAME."""

    def __init__(self, name: str) -> None:
        self.address = f"oci://{name}"
        self._host, _, self._name = name.partition("/")
        local = self._host.partition(":")[0] in ("localhost", "127.0.0.1")
        self._base = f"{'http' if local else 'https'}://{self._host}/v2/{self._name}/"
        self._bearer: str | None = None

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        return httpx.Client(timeout=SECONDS, follow_redirects=True)

    def size(self, digest: str) -> int | None:
        answer = self._ask("HEAD", f"blobs/sha256:{digest}")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return int(answer.headers["Content-Length"])

    def put(self, blob: Blob, source: BinaryIO, sent: Sent) -> None:
        answer = self._ask("POST", "blobs/uploads/")
        answer.raise_for_status()
        place = urljoin(self._base, answer.headers["Location"])
        begin = 0
        for content in parts(source, blob, CHUNK):
            if content:
                place = self._chunk(place, begin, content)
            begin += len(content)
            sent(len(content))
        ask = "&" if "?" in place else "?"
        answer = self._ask(
            "PUT", f"{place}{ask}digest=sha256:{blob.sha256}", headers={"Content-Length": "0"}
        )
        answer.raise_for_status()

    def _chunk(self, place: str, begin: int, content: bytes) -> str:
        """Send a chunk, also if the connection breaks in it; the place of the next one."""
        import httpx

        done = 0
        for attempt in range(TRIES):
            rest = content[done:]
            headers = {
                "Content-Type": LAYER,
                "Content-Range": f"{begin + done}-{begin + len(content) - 1}",
            }
            try:
                answer = self._ask("PATCH", place, content=rest, headers=headers)
                answer.raise_for_status()
                return urljoin(self._base, answer.headers["Location"])
            except httpx.TransportError:
                if attempt + 1 == TRIES:
                    raise
            state = self._ask("GET", place)
            state.raise_for_status()
            there = re.search(r"-(\d+)$", state.headers.get("Range", ""))
            done = min(max(int(there[1]) + 1 - begin, 0), len(content)) if there else 0
            place = urljoin(self._base, state.headers.get("Location", place))
            if done == len(content):
                return place
        raise AssertionError("unreachable")

    def read(self, digest: str, begin: int = 0) -> Iterator[bytes]:
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        answer = self._ask("GET", f"blobs/sha256:{digest}", headers=headers, stream=True)
        try:
            if answer.status_code == 404:
                raise Missing(digest[:12])
            answer.raise_for_status()
            skip = begin if answer.status_code == 200 else 0  # a registry may ignore the range
            for part in answer.iter_bytes(PART):
                kept = part[skip:]
                skip = max(0, skip - len(part))
                if kept:
                    yield kept
        finally:
            answer.close()

    def finish(self, bundle: Blob, blobs: Sequence[Blob]) -> None:
        """Write the manifest that holds the blobs together: without it a registry deletes them."""
        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": VERSION,
            "config": {
                "mediaType": VERSION, "digest": f"sha256:{bundle.sha256}", "size": bundle.bytes,
            },
            "layers": [
                {
                    "mediaType": LAYER,
                    "digest": f"sha256:{blob.sha256}",
                    "size": blob.bytes,
                    "annotations": {TITLE: blob.title},
                }
                for blob in blobs
            ],
        }  # fmt: skip
        answer = self._ask(
            "PUT", f"manifests/bundle-{bundle.sha256[:16]}",
            content=json.dumps(content).encode(), headers={"Content-Type": MANIFEST},
        )  # fmt: skip
        answer.raise_for_status()

    def _ask(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        stream: bool = False,
    ) -> httpx.Response:
        """The registry's answer; asked again with a token if it wants one."""
        for attempt in range(2):  # a token lasts for minutes, a push for hours
            given = dict(headers or {})
            if self._bearer:
                given["Authorization"] = self._bearer
            request = self._client.build_request(
                method, urljoin(self._base, path), content=content, headers=given
            )
            answer = self._client.send(request, stream=stream)
            if answer.status_code != 401 or attempt:
                break
            answer.close()
            self._bearer = self._token(answer.headers.get("WWW-Authenticate", ""))
        return answer

    def _token(self, challenge: str) -> str | None:
        """The header that a challenge asks for; None if there is nothing to answer with."""
        login = credentials(self._host)
        kind, _, rest = challenge.partition(" ")
        basic = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
        if kind.lower() == "basic":
            return basic
        if kind.lower() != "bearer":
            return None
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = fields.pop("realm", "")
        fields.setdefault("scope", f"repository:{self._name}:pull,push")
        headers = {"Authorization": basic} if basic else {}
        answer = self._client.get(realm, params=fields, headers=headers)
        if answer.status_code in (401, 403):
            return None
        answer.raise_for_status()
        found: Any = answer.json()
        token = found.get("token") or found.get("access_token")
        return f"Bearer {token}" if token else None

    def close(self) -> None:
        self._client.close()

    def explain(self, error: Exception) -> str | None:
        import httpx

        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            if status in (401, 403):
                return (
                    f"may not be used ({status}): log in (`oras login {self._host}`), or set "
                    "OCI_USERNAME and OCI_PASSWORD"
                )
            if status == 404:
                return "does not exist: correct the registry or the repository's name"
            text = " ".join(error.response.text.split()) if error.response.is_closed else ""
            return f"refused ({status} {text[:120]}): {AGAIN}"
        if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
            return (
                f"cannot be reached ({type(error).__name__}): check the network and the address, "
                f"and {AGAIN}"
            )
        return None


def credentials(host: str) -> str:
    """user:password for a registry, from the environment; "" without."""
    user, password = os.environ.get("OCI_USERNAME"), os.environ.get("OCI_PASSWORD")
    if user and password:
        return f"{user}:{password}"
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    file = folder / "config.json"
    try:
        known = json.loads(file.read_text())
        entry = known.get("auths", {}).get(host, {})
        return base64.b64decode(entry.get("auth", ""), validate=True).decode()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} cannot be read ({type(error).__name__}): log in again, or set OCI_USERNAME "
            "and OCI_PASSWORD"
        ) from error
