"""Messages between the server and its engine's process: a length, then a pickle.

Pickle is safe here, because both ends are this program on one machine and nobody else has the
socket. It reads a batch of tokens faster than JSON.
"""

import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any

HEAD = struct.Struct("!I")


def pack(message: Any) -> bytes:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEAD.pack(len(body)) + body


class Unpacker:
    """Turns bytes, as they arrive, into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that these bytes complete."""
        self._bytes += data
        while len(self._bytes) >= HEAD.size:
            end = HEAD.size + HEAD.unpack_from(self._bytes)[0]
            if len(self._bytes) < end:
                return
            message = pickle.loads(memoryview(self._bytes)[HEAD.size : end])
            del self._bytes[:end]
            yield message


def receive(connection: socket.socket) -> Any:
    """Read one message from a blocking socket.

    Raises:
        EOFError: the other end is closed.
    """
    size = HEAD.unpack(_receive(connection, HEAD.size))[0]
    return pickle.loads(_receive(connection, size))


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
