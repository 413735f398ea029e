"""An engine in a process of its own that is started again when it dies.

A crash of the runtime (a fault in its native code, the kernel's out-of-memory killer) then costs
the answers in progress, which end with EngineFailed, and not the server: it is not ready at once,
and ready again when the new process has given an answer.
"""

import asyncio
import itertools
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.console import get_console
from pipeline.errors import PipelineError
from pipeline.graph import ROOT
from pipeline.serving.description import Description
from pipeline.serving.engine import EngineFailed, Load, QueueFull, Sampling, Token
from pipeline.serving.engine_process import OF_ALL, arguments
from pipeline.serving.frames import Unpacker, pack, receive

READ_BYTES = 1 << 18
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 30.0
STEADY_SECONDS = 60.0  # a process that lived so long did not die of its start


class SupervisedEngine:
    """An engine (engine.Engine) whose work another process does.

    Args:
        folder, description: what the process opens.
        max_queue: requests that may wait for a slot.

    Raises:
        PipelineError: the engine cannot be opened; as open_engine raises it.
    """

    def __init__(self, folder: Path, description: Description, *, max_queue: int) -> None:
        self._folder, self._description, self._max_queue = folder, description, max_queue
        self._open: dict[int, _Stream | asyncio.Future[Any]] = {}
        self._ids = itertools.count()
        self._adapters: dict[str, Path] = {}
        self._down: str | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._wait = FIRST_WAIT_SECONDS
        facts = self._start()
        self.max_input_len: int = facts["max_input_len"]
        self.max_seq_len: int = facts["max_seq_len"]
        self.features: frozenset[str] = facts["features"]
        self._cache_use: float | None = facts["cache_use"]

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> "_Stream":
        """See engine.Engine.generate.

        Raises:
            QueueFull: as many requests wait as may. EngineFailed: the engine is being restarted.
            ValueError: prompt and answer do not fit into max_seq_len.
        """
        self._require_up()
        if not 0 < len(prompt) <= self.max_seq_len - sampling.max_tokens or sampling.max_tokens < 1:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens do not fit")
        if len(self._open) >= self._description.max_batch_size + self._max_queue:
            raise QueueFull
        return self._begin(prompt, sampling)

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        self._require_up()
        return await self._ask("embed", [list(prompt) for prompt in prompts])

    def adapters(self) -> list[str]:
        return list(self._adapters)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter; a process that is started anew loads it again.

        Raises:
            ValueError: it does not fit the model.
        """
        self._require_up()
        await self._ask("add_adapter", name, str(folder))
        self._adapters[name] = folder

    async def remove_adapter(self, name: str) -> None:
        self._require_up()
        del self._adapters[name]
        await self._ask("remove_adapter", name)

    def load(self) -> Load:
        slots = self._description.max_batch_size
        running = min(slots, len(self._open))
        return Load(running, len(self._open) - running, self._cache_use)

    def down(self) -> str | None:
        """Why no answer can come now; None if one can."""
        return self._down

    def close(self) -> None:
        self._closing = True
        self._lose("the server is shutting down")
        if self._reviving:
            self._reviving.cancel()
        if self._loop and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _require_up(self) -> None:
        if self._down:
            raise EngineFailed(self._down)

    def _start(self) -> dict[str, Any]:
        """Start the process and wait until it has opened the engine; what it says of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                arguments(self._folder, self._description, theirs.fileno()),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._started = time.monotonic()
        try:
            word, facts, text = receive(ours)
        except (EOFError, OSError):
            ours.close()
            code = self._process.wait()
            raise PipelineError(
                f"the process of the {self._description.runtime} engine ended while it opened "
                f"{self._folder} (exit code {code}; -9 is the kernel's, for want of memory)"
            ) from None
        if word == "failed":
            ours.close()
            self._process.wait()
            raise getattr(errors, facts)(text)
        ours.setblocking(False)
        self._socket, self._unpacker, self._unsent = ours, Unpacker(), bytearray()
        self._loop = None
        return facts

    def _begin(self, prompt: Sequence[int], sampling: Sampling) -> "_Stream":
        request = next(self._ids)
        stream = self._open[request] = _Stream(self, request)
        self._send((request, "generate", list(prompt), sampling))
        return stream

    async def _ask(self, what: str, *values: Any) -> Any:
        """Have the process do something, and wait for what comes of it."""
        request = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[request] = future
        self._send((request, what, *values))
        return await future

    def cancel(self, request: int) -> None:
        if self._open.pop(request, None):
            self._send((request, "cancel"))

    def _send(self, message: Any) -> None:
        if self._loop is None:  # the first to ask is in the loop that will read
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._socket, self._read)
        waits = bool(self._unsent)
        self._unsent += pack(message)
        if not waits:
            self._write()

    def _write(self) -> None:
        assert self._loop
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
        if not data:
            self._died()
            return
        for events in self._unpacker.feed(data):
            for request, what, value in events:
                if request == OF_ALL:
                    self._cache_use = value
                elif target := self._open.get(request):
                    if what in ("end", "refused", "failed"):
                        del self._open[request]
                    _tell(target, what, value)

    def _died(self) -> None:
        assert self._loop
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        code = self._process.wait()
        self._lose(f"the engine's process ended (exit code {code}) and is being started again")
        if not self._closing:
            self._reviving = self._loop.create_task(self._revive())

    def _lose(self, reason: str) -> None:
        self._down = reason
        if self._cache_use is not None:
            self._cache_use = 0.0
        lost, self._open = self._open, {}
        for target in lost.values():
            _tell(target, "failed", reason)

    async def _revive(self) -> None:
        """Start processes until one gives an answer, at growing intervals if they die young."""
        get_console().print(f"[red]not ready[/]: {self._down}")
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._wait = FIRST_WAIT_SECONDS
        while True:
            await asyncio.sleep(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)
            try:
                await asyncio.to_thread(self._start)
                await self._prove()
            except (PipelineError, EngineFailed, ValueError) as error:
                self._down = f"the engine's process could not be started again: {error}"
                get_console().print(f"[red]not ready[/]: {self._down}")
                if self._reviving is not asyncio.current_task():
                    return  # it died while it was proven: another task is at it
                continue
            break
        self._down = None
        get_console().print("[green]ready[/]: the engine's process was started again")

    async def _prove(self) -> None:
        """A real answer of the new process, which has its adapters again."""
        for name, folder in self._adapters.items():
            await self._ask("add_adapter", name, str(folder))
        if "embeddings" in self.features:
            await self._ask("embed", [[0]])
            return
        async for _ in self._begin([0], Sampling(max_tokens=1, temperature=0)):
            pass


class _Stream:
    """The tokens of one answer (engine.TokenStream)."""

    def __init__(self, engine: SupervisedEngine, request: int) -> None:
        self.prompt_logprobs: list[Token] | None = None
        self.started: float | None = None
        self._engine, self._request = engine, request
        self._tokens: list[Token] = []
        self._ending: Exception | None = None
        self._news = asyncio.Event()

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> list[Token]:
        if not self._tokens and self._ending is None:
            await self._news.wait()
        self._news.clear()
        if self._tokens:
            tokens, self._tokens = self._tokens, []
            return tokens
        raise self._ending or StopAsyncIteration

    def cancel(self) -> None:
        self._engine.cancel(self._request)
        self.take("end", None)

    def take(self, what: str, value: Any) -> None:
        """What the process said of it."""
        if what == "begun":
            self.prompt_logprobs, self.started = value
            return
        if what == "tokens":
            self._tokens += value
        elif self._ending is None:
            self._ending = _ending(what, value)
        self._news.set()


def _ending(what: str, value: Any) -> Exception:
    if what == "failed":
        return EngineFailed(value)
    return ValueError(value) if what == "refused" else StopAsyncIteration()


def _tell(target: "_Stream | asyncio.Future[Any]", what: str, value: Any) -> None:
    if isinstance(target, _Stream):
        target.take(what, value)
    elif not target.done():
        if what == "end":
            target.set_result(value)
        else:
            target.set_exception(_ending(what, value))
