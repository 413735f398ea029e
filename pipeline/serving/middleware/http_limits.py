"""Limits of a connection that uvicorn lacks: how many, and how long and large headers may be.

Without them, a client can keep a connection and its memory for ever: it sends nothing, sends
headers byte by byte or without end, keeps sending a body after the response, ends a body with
endless trailers, or sends empty lines between requests. request_limits.py limits bodies. When there
are too many connections, the address with most of them loses an idle one to one with fewer.

A client that closes only its sending side still gets its response. One that closes both looks the
same, until something is written to it: so an interim response is written again and again, which
clients ignore, and which a closed connection refuses.
"""

import asyncio
import json
import socket
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.serving.openai import errors

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
# Seconds between two, and between the first two: the first only makes the other side say that it
# is closed.
INTERIM_SECONDS, SECOND_INTERIM_SECONDS = 1.0, 0.05


@dataclass(frozen=True)
class HttpLimits:
    """Limits of connections.

    Attributes:
        header_bytes: size of a request's headers. The framing of a chunked body may have as many
            bytes as the body, plus these.
        header_seconds: time for the headers, from the connection's start or the last response.
        stalled_seconds: time until a client that reads nothing of its response is disconnected.
    """

    connections: int
    header_bytes: int
    header_seconds: float
    stalled_seconds: float


class HttpConfig(uvicorn.Config):
    """uvicorn's settings, and our limits."""

    def __init__(self, app: Any, limits: HttpLimits, **settings: Any) -> None:
        self.limits = limits
        super().__init__(app, http=LimitedHttpProtocol, **settings)


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection, with limits."""

    config: HttpConfig
    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _in_body = False
    _header_bytes = 0
    _body_bytes = 0  # of the body's content
    _received_bytes = 0  # of the content and its framing
    _is_skipped = False  # the message that is being read
    _half_closed = False
    _probe: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits = self.config.limits
        if len(self.connections) > limits.connections and not self._took_idle_place():
            text = f"the server has its maximum of {limits.connections} connections: retry shortly"
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, text)
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(1000 * limits.stalled_seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._start_timer()

    def _took_idle_place(self) -> bool:
        """Close an idle connection of the address with most of them, if that has more than ours."""
        others: list[Any] = [o for o in self.connections if isinstance(o, LimitedHttpProtocol)]
        counts = Counter(other.client[0] for other in others if other.client)
        most = max(counts, key=counts.__getitem__, default=None)
        if self.client is None or most is None or counts[most] <= counts[self.client[0]]:
            return False
        for other in others:
            if other.client and other.client[0] == most and other._is_idle:
                other.transport.close()
                return True
        return False

    def data_received(self, data: bytes) -> None:
        was_in_body = self._in_body
        super().data_received(data)
        if self.transport.is_closing():
            return
        limit = self.config.limits.header_bytes
        if self._in_headers:  # the headers have not ended, so all of `data` belongs to them
            self._header_bytes += len(data)
            if self._header_bytes > limit:
                text = f"the headers have more than {limit} bytes: send fewer or shorter headers"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        elif was_in_body and self._in_body:
            self._received_bytes += len(data)
            if self._received_bytes > 2 * self._body_bytes + limit:
                text = "the chunked body has more framing than content: send larger chunks"
                self._refuse(HTTPStatus.BAD_REQUEST, text)
        elif self._is_idle and not self._timer:  # data has ended uvicorn's keep-alive timeout
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._header_bytes, self._is_skipped = True, 0, False
        if self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_headers, self._in_body = False, True
        self._body_bytes = self._received_bytes = 0
        self._stop_timer()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._is_skipped = True
            self._refuse(HTTPStatus.BAD_REQUEST, "an HTTP/1.1 request needs one Host header")
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_skipped:
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if not self._is_skipped:
            super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. True keeps the connection open for the response."""
        cycle = self.cycle
        if cycle is None or self._is_idle or self._in_headers or self._in_body:
            return False
        if self.transport.get_extra_info("sslcontext"):  # TLS has no closing of one side alone
            return False
        self._half_closed = True
        if not self.pipeline:
            cycle.keep_alive = False
        self._send_interim(SECOND_INTERIM_SECONDS)
        return True

    def _send_interim(self, next_seconds: float) -> None:
        self._probe = None
        cycle = self.cycle
        if self.transport.is_closing() or cycle is None or cycle.response_started:
            return
        if cycle.scope["http_version"] == "1.1":  # older clients do not know interim responses
            self.transport.write(INTERIM)
            self._probe = self.loop.call_later(next_seconds, self._send_interim, INTERIM_SECONDS)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._half_closed and self._is_idle:
            self.transport.close()
        if self._in_body and self._is_idle and not self.transport.is_closing():
            self._start_timer()

    @property
    def _is_idle(self) -> bool:
        """Whether no response is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._probe:
            self._probe.cancel()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.config.limits.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if not self._in_headers:  # unused, such as one that a browser opened in advance
            self._timer = None
            self.transport.close()
            return
        seconds = self.config.limits.header_seconds
        text = f"the headers were not complete after {seconds:g} s"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, text)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Respond with an error and close. A response that has begun is finished first."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        is_behind = self._is_skipped and not self._is_idle  # another request's response comes first
        if is_behind or (self.cycle and self.cycle.response_started and not self._is_idle):
            assert self.cycle
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        body = json.dumps(errors.error_body(text)).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
