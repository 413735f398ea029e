"""A model hub on this machine: the endpoints that huggingface_hub uses, and faults on demand.

with HubServer() as hub:
    hub.add("org/name", folder)                  # its files as the branch main
    hub.add("datasets/org/name", folder)         # the same of a data set
    environment = hub.environment(cache)         # for a process that fetches from it
    hub.cut["model.safetensors"] = 1000          # the connection ends after so many bytes, once
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LARGE = 512  # bytes from which a file is kept apart from git, with its sha256 as its name
PART = 2**20


@dataclass
class Repository:
    """A model or a data set.

    commits: a folder for each. branches: names of commits. token: that may read it.
    """

    commits: dict[str, Path] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


class HubServer:
    """Serves repositories until the context ends. seen: method and path of each request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.seen: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.cut: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.status: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self, body=True)

            def do_HEAD(self) -> None:
                outer._answer(self, body=False)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(
        self, name: str, folder: Path, *, branch: str = "main", token: str | None = None,
        gated: bool = False,
    ) -> str:  # fmt: skip
        """Publish a folder as the newest commit of a branch; the commit."""
        content = hashlib.sha1()
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            content.update(f"{file.relative_to(folder)}\0{_digest(file)}\n".encode())
        commit = content.hexdigest()
        repository = self.repositories.setdefault(name, Repository())
        repository.commits[commit] = folder
        repository.branches[branch] = commit
        repository.token, repository.gated = token, gated
        return commit

    def environment(self, cache: Path, token: str | None = None) -> dict[str, str]:
        """Variables with which a process fetches from here into a cache of its own."""
        given = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
        return given | ({"HF_TOKEN": token} if token else {})

    def files_asked_for(self) -> list[str]:
        """Names of the files whose content was asked for."""
        found = [re.search(r"/resolve/[^/]+/(.+)", path) for method, path in self.seen
                 if method == "GET"]  # fmt: skip
        return [match[1] for match in found if match]

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        self.seen.append((request.command, path))
        if self.status is not None:
            return _refuse(request, self.status, "", body)
        facts = re.fullmatch(r"/api/(?:models/|(?=datasets/))(.+?)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        found = facts or file
        name, revision = (found[1], found[2]) if found else ("", "")
        repository = self.repositories.get(str(name))
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None or (
            repository.token and not repository.gated and repository.token != given
        ):
            return _refuse(request, 401, "RepoNotFound", body)
        commit = repository.branches.get(revision or "main", revision or "")
        if commit not in repository.commits:
            return _refuse(request, 404, "RevisionNotFound", body)
        folder = repository.commits[commit]
        if facts:
            siblings = [_sibling(folder, p) for p in sorted(folder.rglob("*")) if p.is_file()]
            content = json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
            return _send(request, 200, content, {"Content-Type": "application/json"}, body)
        if repository.gated and repository.token != given:
            return _refuse(request, 403, "GatedRepo", body)
        place = folder / file[3] if file else folder
        if not place.is_file():
            return _refuse(request, 404, "EntryNotFound", body)
        return self._file(request, place, commit, body)

    def _file(self, request: BaseHTTPRequestHandler, file: Path, commit: str, body: bool) -> None:
        size, digest = file.stat().st_size, _digest(file)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        wanted = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
        begin = int(wanted[1]) if wanted else 0
        if wanted:
            self.ranges.append(request.headers["Range"])
            headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
        request.send_response(206 if wanted else 200)
        for name, value in {**headers, "Content-Length": str(size - begin)}.items():
            request.send_header(name, value)
        request.end_headers()
        if not body:
            return
        end = self.cut.pop(file.name, size)
        with file.open("rb") as stream:
            if end == size and file.name not in self.corrupt:
                request.wfile.flush()
                request.connection.sendfile(stream, begin)
                return
            stream.seek(begin)
            while (at := stream.tell()) < end and (part := stream.read(min(PART, end - at))):
                if file.name in self.corrupt:
                    part = part[:-1] + bytes([part[-1] ^ 1])
                request.wfile.write(part)
        if end < size:
            request.close_connection = True
            request.connection.close()


def _digest(file: Path) -> str:
    """The name by which the hub knows a content: git's for small files, sha256 for large ones."""
    facts = file.stat()
    return _digest_of(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(1024)
def _digest_of(file: Path, size: int, time: int) -> str:
    content = file.read_bytes()
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(folder: Path, file: Path) -> dict[str, Any]:
    size, digest = file.stat().st_size, _digest(file)
    entry = {"rfilename": file.relative_to(folder).as_posix(), "size": size}
    if size < LARGE:
        return {**entry, "blobId": digest}
    return {**entry, "blobId": "0" * 40,
            "lfs": {"sha256": digest, "size": size, "pointerSize": 134}}  # fmt: skip


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str, body: bool) -> None:
    _send(request, status, b"{}", {"X-Error-Code": code} if code else {}, body)


def _send(
    request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str],
    body: bool,
) -> None:  # fmt: skip
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(content)


def point_at(hub_url: str, cache: Path, monkeypatch: Any) -> None:
    """Have huggingface_hub in this process use a server and a cache, whatever it read at import."""
    from huggingface_hub import constants, file_download

    template = hub_url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub_url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
