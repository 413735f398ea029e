"""multiprocessing.connection and pyzmq beside our frames, between the server and its engine.

Every transport is driven as the server would have to: from one event loop that must not wait.
multiprocessing's connections know only calls that wait, so that they come in two forms: called from
the event loop when the socket is readable, and from two threads.
"""

import asyncio
import contextlib
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import psutil
import uvloop

from bench.compared_libraries import framing_peer
from bench.compared_libraries.code_lines import code_lines
from bench.compared_libraries.timing import import_ms
from bench.origin import ROOT
from pipeline.engines.process import framing as frames
from pipeline.engines.process.client import READ_BYTES, WorkerClient
from pipeline.engines.process.framing import Unpacker, pack

ROUND_TRIPS, MESSAGES, AT_ONCE = 2000, 5000, 16
BIG_BYTES = 4 << 20  # log-probabilities of a long prompt
STOPPED_SECONDS = 1.0
FLOOD = 400  # prompts of 64 KiB to a process that does not read: 25 MiB
LONGEST_WAIT_SECONDS = 3.0
ROUNDS = 5


class Ours:
    """As WorkerClient has it: a buffer for what the socket does not take at once."""

    name = "ours"
    run = staticmethod(uvloop.run)

    def __init__(self, hear: Callable[[Any], None], gone: Callable[[], None]) -> None:
        self._hear, self._gone = hear, gone
        self._loop = asyncio.get_running_loop()
        self._socket, theirs = socket.socketpair()
        self.process = start(self.name, theirs.fileno())
        theirs.close()
        self._socket.setblocking(False)
        self._unpacker, self._unsent = Unpacker(), bytearray()
        self._loop.add_reader(self._socket, self._read)

    def send(self, message: Any) -> None:
        waits = bool(self._unsent)
        self._unsent += pack(message)
        if not waits:
            self._write()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _write(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return  # the reader sees the end, too
        if self._unsent:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for message in self._unpacker.feed(data):
            self._hear(message)
        if not data:
            self._loop.remove_reader(self._socket)
            self._gone()


class InLoop:
    """multiprocessing.connection, called from the event loop.

    Not uvloop's, on which the server runs: that makes the descriptor one that never waits, and a
    send that does not fit raises when a part of the message is written.
    """

    name = "multiprocessing.connection"
    run = staticmethod(asyncio.run)

    def __init__(self, hear: Callable[[Any], None], gone: Callable[[], None]) -> None:
        self._hear, self._gone = hear, gone
        self._loop = asyncio.get_running_loop()
        self._connection, self.process = connected()
        self._loop.add_reader(self._connection.fileno(), self._read)

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def close(self) -> None:
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()

    def _read(self) -> None:
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._connection.fileno())
            self._gone()
            return
        self._hear(message)


class InThreads:
    """multiprocessing.connection, with a thread that reads and one that writes."""

    name = "multiprocessing.connection, two threads"
    run = staticmethod(uvloop.run)

    def __init__(self, hear: Callable[[Any], None], gone: Callable[[], None]) -> None:
        self._hear, self._gone = hear, gone
        self._loop = asyncio.get_running_loop()
        self._connection, self.process = connected()
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def send(self, message: Any) -> None:
        self._outgoing.put(message)

    def close(self) -> None:
        self._outgoing.put(None)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._outgoing.get():
                self._connection.send(message)

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._tell(self._hear, self._connection.recv())
        self._tell(self._gone)

    def _tell(self, what: Callable[..., None], *given: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(what, *given)


class Zmq:
    """pyzmq, with its own asyncio sockets and a monitor that tells of the peer's end."""

    name = "pyzmq"
    run = staticmethod(uvloop.run)
    contexts: ClassVar[list[Any]] = []

    def __init__(self, hear: Callable[[Any], None], gone: Callable[[], None]) -> None:
        import zmq
        import zmq.asyncio
        from zmq.utils.monitor import recv_monitor_message

        self._folder = tempfile.TemporaryDirectory()  # in which nobody else can open the socket
        place = f"ipc://{self._folder.name}/socket"
        self._socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # else what it does not take waits or is dropped
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(place)
        monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.process = start(self.name, place)

        async def read() -> None:
            while True:
                hear(await self._socket.recv_pyobj())

        async def watch() -> None:
            await recv_monitor_message(monitor)
            gone()

        self._tasks = [asyncio.create_task(work()) for work in (read, watch)]

    def send(self, message: Any) -> None:
        self._socket.send_pyobj(message)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._socket.close()
        self._folder.cleanup()


TRANSPORTS: list[Any] = [Ours, InLoop, InThreads, Zmq]


def start(transport: str, place: int | str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", framing_peer.__name__, transport.split(".")[0], str(place)]
    descriptors = [place] if isinstance(place, int) else []
    return subprocess.Popen(words, cwd=ROOT, pass_fds=descriptors)


def connected() -> tuple[Connection, "subprocess.Popen[bytes]"]:
    ours, theirs = socket.socketpair()
    process = start(InLoop.name, theirs.fileno())
    theirs.close()
    return Connection(ours.detach()), process


class Server:
    """What the event loop of a server sees through a transport."""

    def __init__(self, transport: Any) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.peer = transport(self.heard.put_nowait, self.gone.set)

    async def ask(self, *message: Any) -> Any:
        self.peer.send(message)
        return await asyncio.wait_for(self.heard.get(), 60)

    def close(self) -> None:
        self.peer.process.kill()
        self.peer.process.wait()
        self.peer.close()


def measure() -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {transport.name: [] for transport in TRANSPORTS}
    for _ in range(ROUNDS):
        for transport in TRANSPORTS:
            found[transport.name].append(transport.run(figures(transport)))
    # The best of the rounds: other work on the machine only slows them down.
    figures_of = {
        name: {
            key: round((max if key == "tokens_per_second" else min)(r[key] for r in rounds), 2)
            for key in rounds[0]
        }
        for name, rounds in found.items()
    }
    imports = import_ms(
        {
            "ours": "import socket, struct, pickle",
            "multiprocessing.connection": "import multiprocessing.connection",
            "pyzmq": "import zmq.asyncio",
        }
    )
    return {
        "rounds": ROUNDS,
        **figures_of,
        "import_ms": imports,
        # What a library would take the place of, and what it leaves to write.
        "lines_of_code": {
            "ours": code_lines(frames, WorkerClient.send, WorkerClient._write, WorkerClient._read),
            **{t.name: code_lines(t.send, *readers(t)) for t in (InLoop, InThreads)},
            "pyzmq": code_lines(Zmq.__init__, Zmq.send, Zmq.close),
        },
    }


def readers(transport: Any) -> list[Callable[..., object]]:
    names = ("_read", "_write", "_tell")
    return [getattr(transport, name) for name in names if hasattr(transport, name)]


async def figures(transport: Any) -> dict[str, float]:
    server = Server(transport)
    try:
        await server.ask("echo", 0)  # the process has started
        found = {
            **{name: 1e6 * seconds for name, seconds in (await round_trips(server)).items()},
            "tokens_per_second": await burst(server),
            "ms_of_4_mib_and_back": 1e3 * await big(server),
            "longest_stall_ms_while_it_is_stopped": 1e3 * await stall_of(server, stopped(server)),
        }
        if transport is Zmq:  # its own thread puts messages together
            found["longest_stall_ms_in_half_a_message"] = 0.0
        else:
            half = server.ask("half")
            found["longest_stall_ms_in_half_a_message"] = 1e3 * await stall_of(server, half)
        found["ms_until_a_kill_is_seen"] = 1e3 * await killed(server)
    finally:
        server.close()
    return found


async def round_trips(server: Server) -> dict[str, float]:
    """Seconds of a token there and back, and processor time that the server spends on it."""
    times, worked = [], time.process_time()
    for number in range(ROUND_TRIPS):
        begin = time.perf_counter()
        await server.ask("echo", number)
        times.append(time.perf_counter() - begin)
    worked = time.process_time() - worked
    return {
        "round_trip_microseconds": statistics.median(times),
        "processor_microseconds_of_the_server": worked / ROUND_TRIPS,
    }


async def burst(server: Server) -> float:
    """Tokens a second, of 16 answers together."""
    begin = time.perf_counter()
    server.peer.send(("burst", MESSAGES, AT_ONCE))
    while (await server.heard.get())[0] != "end":
        pass
    return round(MESSAGES * AT_ONCE / (time.perf_counter() - begin))


async def big(server: Server) -> float:
    """Seconds of a large message there and back."""
    body = os.urandom(BIG_BYTES)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        await server.ask("echo", body)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


async def stall_of(server: Server, work: Any) -> float:
    """The longest that the event loop did nothing else while some work went on."""
    longest, over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not over:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begin - 0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    await work
    over = True
    await ticking
    return longest


async def stopped(server: Server) -> None:
    """Send to a process that does not read for a second; all of it arrives in the end."""
    process = server.peer.process
    server.peer.send(("stop",))
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        await asyncio.sleep(0.01)
    goes_on = threading.Timer(STOPPED_SECONDS, process.send_signal, [signal.SIGCONT])
    goes_on.start()  # a thread: the event loop may be stuck
    for number in range(FLOOD):
        server.peer.send(("echo", number, b"x" * (1 << 16)))
        await asyncio.sleep(0)
    for number in range(FLOOD):
        assert (await asyncio.wait_for(server.heard.get(), 60))[1] == number


async def killed(server: Server) -> float:
    """Seconds until the server knows that the process was killed."""
    begin = time.perf_counter()
    server.peer.process.kill()
    await asyncio.wait_for(server.gone.wait(), LONGEST_WAIT_SECONDS)
    return time.perf_counter() - begin
