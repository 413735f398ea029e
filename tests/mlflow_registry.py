"""An MLflow registry over HTTP for unit tests: what the pipeline asks of its REST API."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class FakeRegistry:
    """One registered model, "bank". versions: tags by number. files: what its artifact store has.

    asked: paths of requests. status: of every answer, where it is not 200."""

    uri: str = ""
    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    experiments: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    status: int = 200

    def answer(self, path: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """None: there is no such thing."""
        if path == "registered-models/alias" and "version" in given:
            self.aliases[given["alias"]] = int(given["version"])
            return {}
        if path == "registered-models/set-tag":
            self.tags[given["key"]] = given["value"]
            return {}
        if path == "registered-models/alias":
            number = self.aliases.get(given["alias"])
            return number and {"model_version": {"version": str(number)}}
        if path == "registered-models/get":
            aliases = [{"alias": a, "version": str(v)} for a, v in self.aliases.items()]
            tags = [{"key": key, "value": value} for key, value in self.tags.items()]
            return {"registered_model": {"aliases": aliases, "tags": tags}}
        if path == "model-versions/get":
            number = int(given["version"])
            return {"model_version": self.version(number)} if number in self.versions else None
        if path == "model-versions/search":
            found = [self.version(number) for number in self.versions]
            return {"model_versions": [{**each, "aliases": []} for each in found]}  # as MLflow does
        if path == "model-versions/set-tag":
            self.versions[int(given["version"])][given["key"]] = given["value"]
            return {}
        if path == "model-versions/delete-tag":
            self.versions[int(given["version"])].pop(given["key"], None)
            return {}
        if path == "experiments/create":
            self.experiments.add(given["name"])
            return {"experiment_id": "7"}
        if path == "experiments/get-by-name" and given["experiment_name"] in self.experiments:
            return {"experiment": {"artifact_location": "mlflow-artifacts:/7"}}
        return None

    def version(self, number: int) -> dict[str, Any]:
        tags = [{"key": key, "value": value} for key, value in self.versions[number].items()]
        aliases = [alias for alias, named in self.aliases.items() if named == number]
        return {"version": str(number), "tags": tags, "aliases": aliases}


@contextmanager
def mlflow_registry() -> Iterator[FakeRegistry]:
    registry = FakeRegistry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silent."""

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.ask(dict(parse_qsl(urlsplit(self.path).query)))

        def do_POST(self) -> None:
            self.ask(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        do_DELETE = do_POST

        def do_PUT(self) -> None:
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            registry.files[urlsplit(self.path).path.partition("/artifacts/")[2]] = content
            self.reply(200, b"{}")

        def ask(self, given: dict[str, Any]) -> None:
            path = urlsplit(self.path).path
            registry.asked.append(path)
            if "/mlflow-artifacts/" in path:
                return self.file(path, given.get("path"))
            found = registry.answer(path.removeprefix("/api/2.0/mlflow/"), given)
            if registry.status != 200:
                return self.reply(registry.status, b"{}")
            if found is None:
                missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}
                return self.reply(404, json.dumps(missing).encode())
            return self.reply(200, json.dumps(found).encode())

        def file(self, path: str, listed: str | None) -> None:
            if listed is not None:
                files = [
                    {"path": name.rpartition("/")[2], "file_size": len(content)}
                    for name, content in registry.files.items()
                    if name.startswith(f"{listed}/")
                ]
                return self.reply(200, json.dumps({"files": files}).encode())
            content = registry.files.get(path.partition("/artifacts/")[2])
            return self.reply(404 if content is None else 200, content or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.uri = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield registry
    server.shutdown()
    server.server_close()
