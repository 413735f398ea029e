"""The engine's end of framing.py: answers what it is asked over one of the transports.

    python -m bench.compared_libraries.framing_peer ours 3
    python -m bench.compared_libraries.framing_peer multiprocessing 3
    python -m bench.compared_libraries.framing_peer pyzmq ipc:///tmp/…/socket

It blocks where the engine's process of the server would not: only the server's end is measured.
"""

import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from pipeline.engines.base import Token
from pipeline.engines.process.framing import pack, receive

PAUSE_SECONDS = 1.0  # in the middle of a message


def main(transport: str, place: str) -> None:
    if transport == "pyzmq":
        import zmq

        peer = zmq.Context().socket(zmq.PAIR)
        peer.setsockopt(zmq.SNDHWM, 0)
        peer.connect(place)
        serve(peer.recv_pyobj, lambda message: peer.send_pyobj(message), None)
    elif transport == "multiprocessing":
        from multiprocessing.connection import Connection

        connection = Connection(int(place))
        serve(connection.recv, connection.send, connection.fileno())
    else:
        ours = socket.socket(fileno=int(place))
        serve(lambda: receive(ours), lambda message: ours.sendall(pack(message)), ours.fileno())


def serve(ask: Callable[[], Any], send: Callable[[Any], None], descriptor: int | None) -> None:
    """Until the other end is gone."""
    while True:
        try:
            what, *given = ask()
        except EOFError:
            return
        if what == "echo":
            send(("echo", *given))
        elif what == "burst":
            messages, answers = given
            tokens = [(i, "tokens", [Token(1000 + i, -0.5)]) for i in range(answers)]
            for _ in range(messages):
                send(("tokens", tokens))
            send(("end",))
        elif what == "stop":  # as a process that the kernel pages, or a debugger holds
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "half":
            assert descriptor is not None
            send_in_halves(descriptor, pickle.dumps(("half", b"x" * 1000)))


def send_in_halves(descriptor: int, body: bytes) -> None:
    """Both streams have the same form: four bytes of length, then a pickle."""
    message = struct.pack("!i", len(body)) + body
    os.write(descriptor, message[:500])
    time.sleep(PAUSE_SECONDS)
    os.write(descriptor, message[500:])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
