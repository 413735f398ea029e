"""The process of an engine: opens it, and serves the server's requests over a socket.

Started by client.py. The tokens of all answers from one step of the engine are sent in one message.
The process ends with the server, and when its engine is down.

From the server: (id, what, arguments …). To it: [(id, what, value), …], where the id OF_ALL marks
what concerns no single request: the share of the cache in use.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvloop

from pipeline.core.errors import PipelineError
from pipeline.engines.base import Engine, EngineFailed, TokenStream
from pipeline.engines.description import Description
from pipeline.engines.process.framing import Unpacker, pack
from pipeline.engines.registry import ENGINES

READ_BYTES = 1 << 16
WATCH_SECONDS = 0.5
OF_ALL = -1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.engines.process.worker")
    parser.add_argument("--fd", type=int, required=True, help="the server's socket")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--description", required=True, help="Description, in JSON")
    given = parser.parse_args()
    # Ctrl-C in a terminal, and SIGTERM from `timeout` and systemd, reach this process too, but the
    # server decides when it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=given.fd)
    description = Description(**json.loads(given.description))
    try:
        # The server limits the queue, because it has to refuse at once.
        engine = ENGINES[description.runtime].open(given.folder, description, sys.maxsize)
    except PipelineError as error:
        connection.sendall(pack(("failed", type(error).__name__, str(error))))
        sys.exit(error.exit_code)
    facts = {
        "max_input_len": engine.max_input_len,
        "max_seq_len": engine.max_seq_len,
        "features": engine.features,
        "vocab_size": getattr(engine, "vocab_size", None),
        "cache_use": engine.load().cache_use,
    }
    connection.sendall(pack(("ready", facts, os.getpid())))
    uvloop.run(_Worker(engine, connection).run())
    os._exit(0)  # the engine's thread may be in the middle of a step


class _Worker:
    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        # Callers ask it only for what is in its features.
        self._engine: Any = engine
        self._connection = connection
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outgoing: list[tuple[int, str, Any]] = []
        self._cache_use = engine.load().cache_use  # as the server knows it

    async def run(self) -> None:
        """Serve until the server has ended or the engine is down."""
        reader, self._writer = await asyncio.open_connection(sock=self._connection)
        self._loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self._watch())
        unpacker = Unpacker()
        while data := await reader.read(READ_BYTES):
            for message in unpacker.feed(data):
                self._take(*message)
        watching.cancel()
        self._writer.close()

    async def _watch(self) -> None:
        """End the process when the engine is down; the server starts another."""
        while self._engine.down() is None:
            await asyncio.sleep(WATCH_SECONDS)
            if self._engine.load().cache_use != self._cache_use:
                self._flush()
        os._exit(1)

    def _take(self, request: int, what: str, *arguments: Any) -> None:
        if what == "cancel":
            if task := self._tasks.get(request):  # which may not have started yet
                task.cancel()
            return
        work = self._answer if what == "generate" else getattr(self, f"_{what}")
        task = self._tasks[request] = asyncio.create_task(self._guarded(request, work, arguments))
        task.add_done_callback(lambda _: self._tasks.pop(request))

    async def _guarded(self, request: int, work: Any, arguments: tuple[Any, ...]) -> None:
        """Do the work, and always end with a message, because the server waits for one."""
        try:
            self._send(request, "end", await work(request, *arguments))
        except ValueError as error:
            self._send(request, "refused", str(error))
        except EngineFailed as error:
            self._send(request, "failed", str(error))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # native libraries raise more than Exception
            self._send(request, "failed", f"{type(error).__name__}: {error}")

    async def _answer(self, request: int, prompt: list[int], sampling: Any) -> None:
        stream: TokenStream = self._engine.generate(prompt, sampling)
        try:
            first, drafts = True, None
            async for tokens in stream:
                if first:
                    more = (getattr(stream, name, None) for name in ("started", "cached_tokens"))
                    facts = (stream.prompt_logprobs, *more)
                    self._send(request, "begun", facts)
                    first = False
                if (found := getattr(stream, "drafts", None)) != drafts:
                    drafts = found
                    self._send(request, "drafts", drafts)
                self._send(request, "tokens", tokens)
        finally:
            stream.cancel()

    async def _embed(self, request: int, prompts: list[list[int]]) -> Any:
        return await self._engine.embed(prompts)

    async def _score(self, request: int, texts: list[list[int]], types: list[list[int]]) -> Any:
        return await self._engine.score(texts, types)

    async def _add_adapter(self, request: int, name: str, folder: str) -> None:
        await self._engine.add_adapter(name, Path(folder))

    async def _remove_adapter(self, request: int, name: str) -> None:
        await self._engine.remove_adapter(name)

    def _send(self, request: int, what: str, value: Any) -> None:
        """Send a message with those of other requests in the same round of the event loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append((request, what, value))

    def _flush(self) -> None:
        cache_use = self._engine.load().cache_use
        if cache_use != self._cache_use:
            self._cache_use = cache_use
            self._outgoing.append((OF_ALL, "cache_use", cache_use))
        outgoing, self._outgoing = self._outgoing, []  # first: an error must not stop the others
        try:
            self._writer.write(pack(outgoing))
        except Exception:
            for event in outgoing:
                self._writer.write(_packed_alone(event))


def _packed_alone(event: tuple[int, str, Any]) -> bytes:
    try:
        return pack([event])
    except Exception as error:
        text = f"its result cannot be sent: {type(error).__name__}: {error}"
        return pack([(event[0], "failed", text)])


def arguments(folder: Path, description: Description, fd: int) -> list[str]:
    """The command that starts the process, which has another working folder."""
    place, text = str(folder.absolute()), json.dumps(dataclasses.asdict(description))
    module = [sys.executable, "-m", "pipeline.engines.process.worker"]
    return [*module, "--fd", str(fd), "--folder", place, "--description", text]


if __name__ == "__main__":
    main()
