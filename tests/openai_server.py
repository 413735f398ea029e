"""A loopback server with the parts of OpenAI's API that clients use, which misbehaves if asked.

with OpenAIServer(lambda body: "an answer") as server:
    settings = endpoint_settings(base_url=server.url)
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from pipeline.config.endpoint import EndpointConfig


class Reply:
    """What the server does with a request in place of answering it.

    raw: these bytes as the body. hang: seconds before anything is sent. close: end the connection.
    """

    def __init__(
        self,
        status: int = 200,
        raw: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        hang: float = 0,
        close: bool = False,
    ) -> None:
        self.status, self.raw, self.headers = status, raw, headers or {}
        self.hang, self.close = hang, close


def error(status: int, message: str, **headers: str) -> Reply:
    """An error in the format of OpenAI's API."""
    body = json.dumps({"error": {"message": message, "type": "test"}}).encode()
    return Reply(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


class OpenAIServer:
    """Answers each chat completion with what `answer` makes of its body: a text or a Reply.

    bodies: of the chat completions. keys: their Authorization headers. most_in_flight: at once.
    """

    def __init__(
        self, answer: Callable[[dict[str, Any]], str | Reply], models: tuple[str, ...] = ("tiny",)
    ) -> None:
        self._answer, self._models = answer, models
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                cards = [{"id": name, "object": "model"} for name in outer._models]
                self._write(Reply(raw=json.dumps({"object": "list", "data": cards}).encode()))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.bodies.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer._in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer._in_flight)
                try:
                    self._write(outer._reply(body))
                finally:
                    with outer._lock:
                        outer._in_flight -= 1

            def _write(self, reply: Reply) -> None:
                if reply.hang:
                    outer._ended.wait(reply.hang)
                if reply.close:
                    self.close_connection = True
                    return
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.raw)))
                    self.end_headers()
                    self.wfile.write(reply.raw)
                except OSError:  # the client does not wait any more
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _reply(self, body: dict[str, Any]) -> Reply:
        answer = self._answer(body)
        if isinstance(answer, Reply):
            return answer
        prompt = sum(len(m["content"].split()) for m in body["messages"])
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(answer.split())},
        }
        return Reply(raw=json.dumps(completion).encode())


def endpoint_settings(base_url: str, **changes: Any) -> EndpointConfig:
    """Settings of an endpoint, with those of a test: quick to give up."""
    return EndpointConfig(
        **{
            "base_url": base_url,
            "model": None,
            "key_variable": None,
            "concurrency": 4,
            "timeout": 5,
            "retries": 2,
            "max_tokens": 20,
            "temperature": 0.0,
            "price": {"prompt": 0, "completion": 0},
            "budget": {"tokens": None, "cost": None},
            **changes,
        }
    )
