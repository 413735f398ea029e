"""What stage=canary asks of a server, with our real metrics and without an engine."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from pipeline.engines.base import Load
from pipeline.serving.metrics import Metrics


class Server:
    """Answers as our server does. up: whether it answers; ready: its health. text: of each answer,
    from the question; None: the request fails."""

    def __init__(self, text: Callable[[str], str | None] = str) -> None:
        self.up = self.ready = True
        self.version, self.text = "3", text
        self.restart()

    def restart(self) -> None:
        self.metrics = Metrics("bank", lambda: Load(0, 0), 1, version="3")

    def answer(self, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.metrics.first_token.observe(seconds / 2)
            self.metrics.latency.observe(seconds)

    def get(self, path: str) -> tuple[int, bytes]:
        if not self.up:
            return 502, b""
        if path == "/metrics":
            return 200, self.metrics.text()
        if path == "/v1/version":
            return 200, json.dumps({"model_version": self.version}).encode()
        if path == "/v1/models":
            return 200, b'{"data": [{"id": "bank"}]}'
        if path.startswith("/webhooks"):
            return 404, b""
        return (200 if self.ready else 503), b"{}"

    def post(self, body: dict[str, Any]) -> tuple[int, bytes]:
        text = self.text(body["messages"][-1]["content"])
        if text is None:
            return 500, b"{}"
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}).encode()


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*server.get(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(*server.post(json.loads(body)))

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
