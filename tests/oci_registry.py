"""A container registry for tests: the OCI distribution protocol with tokens, in one process."""

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "a-token-for-bank"


@dataclass
class Registry:
    """address: HOST:PORT. blobs, manifests: by digest and by tag. break_after: bytes of the next
    chunk after which its connection breaks, once."""

    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    break_after: int | None = None


@contextmanager
def oci_registry() -> Iterator[Registry]:
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silent."""

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            length = headers.pop("length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def take(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def ask(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/token":
                return self.reply(200, json.dumps({"token": TOKEN}).encode())
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.take()
                realm = f'Bearer realm="http://{registry.address}/token",service="test"'
                return self.reply(401, WWW_Authenticate=realm)
            for pattern, act in ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    return act(self, *found.groups())
            return self.reply(404)

        do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = ask

        def begin(self) -> None:
            name = secrets.token_hex(4)
            registry.uploads[name] = bytearray()
            self.reply(202, Location=f"/v2/team/bank/blobs/uploads/{name}")

        def chunk(self, name: str) -> None:
            there = registry.uploads[name]
            begin = int(self.headers["Content-Range"].partition("-")[0])
            if begin != len(there):
                self.take()
                return self.reply(416)
            if registry.break_after is not None:
                there += self.rfile.read(registry.break_after)
                registry.break_after = None
                self.close_connection = True
                self.connection.shutdown(2)
                return None
            there += self.take()
            return self.reply(202, Location=self.path, Range=f"0-{len(there) - 1}")

        def state(self, name: str) -> None:
            there = registry.uploads[name]
            self.reply(204, Location=self.path, Range=f"0-{len(there) - 1}")

        def complete(self, name: str) -> None:
            content = bytes(registry.uploads.pop(name))
            wanted = self.path.rpartition("digest=sha256:")[2]
            if hashlib.sha256(content).hexdigest() != wanted:
                return self.reply(400, b"DIGEST_INVALID")
            registry.blobs[wanted] = content
            return self.reply(201)

        def blob(self, digest: str) -> None:
            if (content := registry.blobs.get(digest)) is None:
                return self.reply(404)
            if given := self.headers.get("Range"):
                return self.reply(206, content[int(given[6:-1]) :])
            return self.reply(200, content, length=str(len(content)))

        def manifest(self, tag: str) -> None:
            registry.manifests[tag] = json.loads(self.take())
            self.reply(201)

    ROUTES = (
        (r"POST /v2/team/bank/blobs/uploads/", Handler.begin),
        (r"PATCH /v2/team/bank/blobs/uploads/(\w+)", Handler.chunk),
        (r"GET /v2/team/bank/blobs/uploads/(\w+)", Handler.state),
        (r"PUT /v2/team/bank/blobs/uploads/(\w+)", Handler.complete),
        (r"(?:GET|HEAD) /v2/team/bank/blobs/sha256:(\w+)", Handler.blob),
        (r"PUT /v2/team/bank/manifests/([\w-]+)", Handler.manifest),
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield registry
    server.shutdown()
    server.server_close()
