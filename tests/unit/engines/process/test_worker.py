"""What an engine's process does with messages, whenever they come."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.engines.base import Load, Sampling, Token
from pipeline.engines.description import Description
from pipeline.engines.process.framing import Unpacker, pack
from pipeline.engines.process.worker import _Worker, arguments
from pipeline.engines.token_stream import PushedStream

ASKED = pack((0, "generate", [1], Sampling(max_tokens=9)))
CANCELLED = pack((0, "cancel"))


class Silent:
    """Gives every answer a first token and never another; counts those in progress."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        def count() -> None:
            self.cancelled += 1

        self.begun += 1
        stream = PushedStream(count)
        stream.put([Token(5)])
        return stream

    def load(self) -> Load:
        return Load(self.begun - self.cancelled, 0)

    def down(self) -> str | None:
        return None


def serve(*messages: bytes) -> tuple[Silent, int]:
    """The engine, and how many of its requests the process still holds after the messages."""
    engine: Any = Silent()

    async def run() -> int:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        with ours:
            worker = _Worker(engine, theirs)
            working = asyncio.create_task(worker.run())
            for message in messages:
                await loop.sock_sendall(ours, message)
                if message != messages[-1]:
                    await loop.sock_recv(ours, 1 << 16)  # the token has come
        await working  # it ends with its socket, having read everything
        await asyncio.sleep(0.01)
        return len(worker._tasks)

    return engine, asyncio.run(asyncio.wait_for(run(), 20))


def test_an_answer_that_is_cancelled_frees_its_slot() -> None:
    engine, held = serve(ASKED, CANCELLED)
    assert (engine.begun, engine.cancelled, held) == (1, 1, 0)


def test_a_cancel_that_comes_together_with_its_request_is_heeded() -> None:
    engine, held = serve(ASKED + CANCELLED)
    assert (engine.begun - engine.cancelled, held) == (0, 0)


def test_a_result_that_cannot_be_sent_fails_its_own_request() -> None:
    """The others of the same round, and later ones, are sent."""

    async def run() -> list[Any]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        worker = _Worker(cast(Any, Silent()), theirs)
        working = asyncio.create_task(worker.run())
        while not hasattr(worker, "_loop"):
            await asyncio.sleep(0.001)
        worker._send(1, "end", lambda: None)  # which pickle refuses
        worker._send(2, "end", "whole")
        await asyncio.sleep(0.01)
        worker._send(3, "end", "later")
        await asyncio.sleep(0.01)
        data = await asyncio.get_running_loop().sock_recv(ours, 1 << 16)
        ours.close()
        await working
        return [event for events in Unpacker().feed(data) for event in events]

    odd, *others = asyncio.run(asyncio.wait_for(run(), 20))
    assert odd[:2] == (1, "failed")
    assert "cannot be sent" in odd[2]
    assert others == [(2, "end", "whole"), (3, "end", "later")]


def test_a_relative_folder_is_found_from_another_working_folder(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        description = Description("onnxruntime", "1", "fp32", {}, "", 1, 1, 2)
        command = arguments(Path("artifacts/build"), description, 3)
    assert command[command.index("--folder") + 1] == str(tmp_path / "artifacts/build")
