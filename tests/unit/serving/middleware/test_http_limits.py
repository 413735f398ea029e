"""Connections of real sockets that are too many, too slow, too talkative, or do not read."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response

from pipeline.serving.address import listen
from pipeline.serving.middleware.http_limits import INTERIM, HttpConfig, HttpLimits

SLOW = 0.4  # seconds of header_seconds and stalled_seconds
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while (await receive_now(receive)) is None:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        finally:
            left.set()
        return
    if scope["path"] == "/wait":
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await Response(str(size))(scope, receive, send)
        return
    if scope["path"] == "/later":
        await asyncio.sleep(0.2)
        await Response("later")(scope, receive, send)
        return
    if scope["path"] == "/until-left":
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()
        return
    await Response("hello")(scope, receive, send)


async def receive_now(receive: Any) -> Any:
    try:
        async with asyncio.timeout(0.001):
            message = await receive()
            return message if message["type"] == "http.disconnect" else None
    except TimeoutError:
        return None


left = threading.Event()


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    limits = HttpLimits(
        connections=8, header_bytes=4096, header_seconds=SLOW, stalled_seconds=2 * SLOW
    )
    settings = HttpConfig(
        app, limits, log_config=None, log_level="error", lifespan="off", ws="none"
    )
    server = uvicorn.Server(settings)
    with listen("127.0.0.1", 0) as listening:
        place = listening.getsockname()
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield place
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def connect(address: tuple[str, int]) -> Iterator[Any]:
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(address, timeout=10))
        return opened[-1]

    yield connect
    for sock in opened:
        sock.close()
    time.sleep(0.05)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_request_is_served_and_the_connection_stays_open(connect: Any) -> None:
    sock = connect()
    for _ in range(2):
        sock.sendall(GET)
        answer = b""
        while not answer.endswith(b"hello"):
            answer += sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        time.sleep(1.5 * SLOW)  # longer than headers may take: an idle connection has none


def test_headers_a_byte_at_a_time_are_408(connect: Any) -> None:
    sock = connect()
    begin = time.monotonic()
    try:
        for byte in b"GET / HTTP/1.1\r\nhost: " + b"x" * 100:
            sock.sendall(bytes([byte]))
            time.sleep(SLOW / 10)
    except OSError:
        pass
    assert time.monotonic() - begin < 4 * SLOW
    assert read_all(sock).startswith(b"HTTP/1.1 408")


def test_a_silent_connection_is_closed(connect: Any) -> None:
    begin = time.monotonic()
    assert read_all(connect()) == b""
    assert SLOW / 2 < time.monotonic() - begin < 4 * SLOW


def test_headers_without_end_are_431(connect: Any) -> None:
    sock = connect()
    try:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        for i in range(200):
            sock.sendall(b"x-%d: %s\r\n" % (i, b"y" * 100))
            time.sleep(0.0005)
        pytest.fail("20 kB of headers were taken")
    except OSError:
        pass


def test_endless_headers_get_a_response_before_the_close(connect: Any) -> None:
    sock = connect()
    sock.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 5000)
    answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"4096 bytes" in answer


@pytest.mark.parametrize("extra", [b"x", b"\r\n"])
def test_data_after_a_response_does_not_keep_the_connection_open(
    connect: Any, extra: bytes
) -> None:
    sock = connect()
    body = b"content-length: 1000\r\n" if extra == b"x" else b""
    sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n" + body + b"\r\n")
    assert sock.recv(65536).endswith(b"hello")
    begin = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() < begin + 10:
            time.sleep(SLOW / 10)
            sock.sendall(extra)
    assert time.monotonic() - begin < 4 * SLOW


@pytest.mark.parametrize(
    "endless", [b"0\r\n" + b"a: b\r\n" * 2000, b"0\r\na: " + b"b" * 12000, b"1;" + b"x" * 12000]
)
def test_frames_without_end_are_400(connect: Any, endless: bytes) -> None:
    sock = connect()
    head = b"POST /wait HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    sock.sendall(head + b"5\r\nhello\r\n")
    time.sleep(SLOW / 4)
    sock.sendall(endless[:6000])
    time.sleep(SLOW / 4)
    sock.sendall(endless[6000:])
    assert read_all(sock).startswith(b"HTTP/1.1 400")


def test_a_body_in_small_chunks_is_accepted(connect: Any) -> None:
    sock = connect()
    sock.sendall(b"POST /wait HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(20):
        sock.sendall(b"40\r\n" + b"x" * 64 + b"\r\n")
        time.sleep(0.001)
    sock.sendall(b"0\r\n\r\n")
    assert sock.recv(65536).endswith(b"1280")


def test_what_is_not_http_is_400(connect: Any) -> None:
    sock = connect()
    sock.sendall(b"\x16\x03\x01\x00\xa5\x01\x00\x00")  # TLS
    answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"type": "invalid_request_error"' in answer


def test_a_connection_too_many_is_503_and_room_comes_back(connect: Any) -> None:
    held = [connect() for _ in range(8)]
    time.sleep(0.1)
    assert read_all(connect()).startswith(b"HTTP/1.1 503")
    for sock in held:
        sock.close()
    time.sleep(0.1)
    sock = connect()
    sock.sendall(GET)
    assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_broken_second_request_does_not_cut_the_first_response(connect: Any) -> None:
    sock = connect()
    sock.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
    assert sock.recv(100).startswith(b"HTTP/1.1 200")
    sock.sendall(b"nonsense\r\n\r\n")
    end = time.monotonic() + 2 * SLOW
    got = 0
    while time.monotonic() < end:
        got += len(sock.recv(65536))
        assert got, "the answer goes on"
    assert got > 65536


def test_a_client_that_does_not_read_is_disconnected(address: tuple[str, int]) -> None:
    left.clear()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address)
        sock.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        assert left.wait(30)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nHost: y\r\n",
        b"GET / HTTP/1.0\r\nhost: x\r\nhost: x\r\n",
        b"POST /wait HTTP/1.1\r\ncontent-length: 3\r\n",
    ],
)
def test_a_request_without_one_host_is_400(connect: Any, head: bytes) -> None:
    sock = connect()
    sock.sendall(head + b"\r\n" + b"abc" * head.startswith(b"POST"))
    answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"needs one Host header" in answer


def test_http_1_0_needs_no_host(connect: Any) -> None:
    sock = connect()
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_the_response_before_a_request_without_host_is_sent(connect: Any) -> None:
    sock = connect()
    sock.sendall(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"later")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_only_ends_its_side_gets_its_response(connect: Any, version: bytes) -> None:
    sock = connect()
    sock.sendall(b"GET /later HTTP/" + version + b"\r\nhost: x\r\n\r\n")
    sock.shutdown(socket.SHUT_WR)
    answer = read_all(sock)
    assert answer.replace(INTERIM, b"").startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"later")
    assert (INTERIM in answer) == (version == b"1.1")


def test_pipelined_requests_of_such_a_client_are_all_answered(connect: Any) -> None:
    sock = connect()
    sock.sendall(2 * b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock).count(b"HTTP/1.1 200") == 2


def test_a_client_that_has_left_is_noticed_soon(connect: Any) -> None:
    left.clear()
    sock = connect()
    sock.sendall(b"GET /until-left HTTP/1.1\r\nhost: x\r\n\r\n")
    time.sleep(0.05)
    sock.close()
    assert left.wait(1)


def test_an_unfinished_request_of_a_client_that_ends_its_side_is_dropped(connect: Any) -> None:
    for begun in (b"GET / HT", b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"):
        sock = connect()
        sock.sendall(begun)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


def test_an_address_with_most_connections_loses_an_idle_one(
    connect: Any, address: tuple[str, int]
) -> None:
    many = [connect() for _ in range(8)]
    for sock in many:
        sock.sendall(GET)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    refused = connect()
    assert b"maximum of 8 connections" in read_all(refused)
    with socket.create_connection(address, timeout=10, source_address=("127.0.0.2", 0)) as other:
        other.sendall(GET)
        assert other.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.1)
        for sock in many:
            sock.setblocking(False)
        closed = 0
        for sock in many:
            with suppress(BlockingIOError):
                closed += sock.recv(65536) == b""
        assert closed == 1
