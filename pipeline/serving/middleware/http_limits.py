"""uvicorn's connections, bounded: how many, how long a request's headers may take, how large.

What uvicorn leaves open: a connection is kept for ever, and memory with it, that sends nothing, or
its headers a byte at a time, or never ends them; that goes on with a body whose request is answered
already; that ends a body in trailers without end; or that sends empty lines between requests.
Bodies themselves are bounded above (bounds.py).
"""

import asyncio
import json
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.serving.openai import protocol


@dataclass(frozen=True)
class WireBounds:
    """header_bytes, header_seconds: of a request's headers, from the connection's or the last
    answer's end. stalled_seconds: until a client that takes none of its answer is cut off.
    What frames a body in chunks may have as many bytes as the body and header_bytes."""

    connections: int
    header_bytes: int
    header_seconds: float
    stalled_seconds: float


class WireConfig(uvicorn.Config):
    """uvicorn's settings with our bounds."""

    def __init__(self, app: Any, bounds: WireBounds, **settings: Any) -> None:
        self.bounds = bounds
        super().__init__(app, http=BoundedProtocol, **settings)


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    config: WireConfig
    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _in_body = False
    _header_bytes = 0
    _body_bytes = 0  # of the body itself
    _sent_bytes = 0  # of all that came in its place

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        bounds = self.config.bounds
        if len(self.connections) > bounds.connections:
            text = f"the server has {bounds.connections} connections, and takes no more"
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, text)
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(1000 * bounds.stalled_seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        was_in_body = self._in_body
        super().data_received(data)
        if self.transport.is_closing():
            return
        limit = self.config.bounds.header_bytes
        if self._in_headers:  # still, after all of it: all of it is headers
            self._header_bytes += len(data)
            if self._header_bytes > limit:
                text = f"the headers have more than the {limit} bytes that are allowed"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        elif was_in_body and self._in_body:
            self._sent_bytes += len(data)
            if self._sent_bytes > 2 * self._body_bytes + limit:
                self._refuse(HTTPStatus.BAD_REQUEST, "the body has more frame than content")
        elif self._answered and not self._timer:  # uvicorn waits no more for the next request
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._header_bytes = True, 0
        if self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_headers, self._in_body = False, True
        self._body_bytes = self._sent_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self._answered and not self.transport.is_closing():
            self._start_timer()

    @property
    def _answered(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "this is not HTTP as the server speaks it")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.config.bounds.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if not self._in_headers:  # such as one opened in advance, as browsers do, and not used
            self._timer = None
            self.transport.close()
            return
        seconds = self.config.bounds.header_seconds
        text = f"the headers were not whole after {seconds:g} s"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, text)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer without the application, and close; an answer that has begun is finished first."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        body = json.dumps(protocol.error_body(text)).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
