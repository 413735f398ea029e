"""The server's side of an engine process: starting it, messages, and its end."""

import asyncio
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.core import errors
from pipeline.core.errors import PipelineError
from pipeline.core.paths import ROOT
from pipeline.engines.description import Description
from pipeline.engines.process.framing import Unpacker, pack, receive
from pipeline.engines.process.worker import arguments

READ_BYTES = 1 << 18
EXIT_SECONDS = 10  # until it ends, once its socket is closed


class WorkerClient:
    """A process that opens an engine's folder, and the socket to it.

    Args:
        on_events: called with its messages: (request, what, value) each.
        on_end: called with its exit code when it has ended by itself.

    Raises:
        PipelineError: the system cannot create a process or a socket.
    """

    def __init__(
        self,
        folder: Path,
        description: Description,
        on_events: Callable[[Sequence[tuple[int, str, Any]]], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._folder, self._runtime = folder, description.runtime
        self._on_events, self._on_end = on_events, on_end
        self._unpacker, self._unsent = Unpacker(), bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            self._socket, self._process = _started(folder, description)
        except OSError as error:
            raise PipelineError(
                f"the process of the {self._runtime} engine cannot be started "
                f"({error.strerror}): too little memory, or too many processes or "
                "open files (ulimit -a)"
            ) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_open(self) -> dict[str, Any]:
        """Facts of the engine once the process has opened it; blocks until then.

        Raises:
            PipelineError: it failed; the error that was raised there, or that the process ended.
        """
        try:
            word, facts, text = receive(self._socket)
        except (EOFError, OSError):
            raise PipelineError(
                f"the process of the {self._runtime} engine ended while it opened {self._folder} "
                f"(exit code {self._exit_code()}; -9 means that the kernel killed it, usually for "
                "lack of memory)"
            ) from None
        if word == "failed":
            self._exit_code()
            raise getattr(errors, facts)(text)
        self._socket.setblocking(False)
        return facts

    def send(self, message: Any) -> None:
        """Call it in the event loop that handles the events; never blocks."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._socket, self._read)
        waits = bool(self._unsent)
        self._unsent += pack(message)
        if not waits:
            self._write()

    def close(self) -> None:
        """Kill the process; on_end is not called."""
        self._leave()
        self._process.kill()
        self._process.wait()

    def _write(self) -> None:
        assert self._loop
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return  # the reader notices the end, too
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
        for events in self._unpacker.feed(data):
            self._on_events(events)
        if not data:
            self._leave()
            self._on_end(self._exit_code())

    def _leave(self) -> None:
        if self._loop and not self._loop.is_closed() and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        self._socket.close()

    def _exit_code(self) -> int:
        """The exit code of the process, whose socket is closed."""
        try:
            return self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _started(
    folder: Path, description: Description
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process, and our end of the socket to it; no socket stays open if it does not start."""
    ours, theirs = socket.socketpair()
    with theirs, ExitStack() as undone:
        undone.callback(ours.close)
        process = subprocess.Popen(
            arguments(folder, description, theirs.fileno()),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        undone.pop_all()
    return ours, process
