"""An engine in a process of its own that is restarted when it dies.

A crash of the runtime (a fault in native code, the kernel's out-of-memory killer) then ends the
answers in progress with EngineFailed, and not the server. The server reports that it is not ready,
and is ready again when the new process has given an answer. The same engine is opened again, even
if another one has taken its folder's place.

After a failed answer the engine must give another one; if it cannot, its process is restarted too.
When every place is taken, the client that holds most of them loses its last one to a client that
holds fewer.
"""

import asyncio
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.engines.base import (
    Client,
    EngineFailed,
    Load,
    QueueFull,
    Sampling,
    require_known_tokens,
)
from pipeline.engines.description import Description
from pipeline.engines.process.client import WorkerClient
from pipeline.engines.process.worker import OF_ALL
from pipeline.engines.token_stream import PushedStream

log = logging.getLogger("pipeline.serving")

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 30.0
STEADY_SECONDS = 60.0  # a process that lived this long did not fail at its start
ENDS = ("end", "refused", "failed")


class SupervisedEngine:
    """An engine (base.Engine) that runs in another process.

    Args:
        folder, description: what the process opens.
        max_queue: requests that may wait for a slot.

    Raises:
        PipelineError: the engine cannot be opened; as open_engine raises it.
    """

    def __init__(self, folder: Path, description: Description, *, max_queue: int) -> None:
        self._description, self._max_queue = description, max_queue
        self.room = description.max_batch_size + max_queue
        self._held = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        self._open: dict[int, PushedStream | asyncio.Future[Any]] = {}
        self._ids = itertools.count()
        self._adapters: dict[str, Path] = {}
        self._down: str | None = None
        self._closing = False
        self._reviving: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._wait = FIRST_WAIT_SECONDS
        with ExitStack() as undone:  # unless everything succeeds
            undone.callback(os.close, self._held)
            self._start(folder)
            undone.callback(self._client.close)
            facts = self._client.wait_until_open()
            undone.pop_all()
        self.max_input_len: int = facts["max_input_len"]
        self.max_seq_len: int = facts["max_seq_len"]
        self.features: frozenset[str] = facts["features"]
        self.vocab_size: int | None = facts["vocab_size"]
        self._cache_use: float | None = facts["cache_use"]

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._client.pid

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        """See base.Engine.generate.

        Raises:
            QueueFull: the queue is full. EngineFailed: the engine is being restarted.
            ValueError: prompt and answer do not fit into max_seq_len, or a token is not in the
                model's vocabulary.
        """
        self._require_up()
        if not 0 < len(prompt) <= self.max_seq_len - sampling.max_tokens or sampling.max_tokens < 1:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens do not fit")
        if self.vocab_size is not None:
            require_known_tokens(prompt, sampling, self.vocab_size)
        if len(self._open) >= self.room:
            self._make_room(sampling.client)
        return self._begin(prompt, sampling)

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        self._require_up()
        if len(self._open) > self._max_queue:
            raise QueueFull
        return await self._ask("embed", [list(prompt) for prompt in prompts])

    async def score(
        self, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
    ) -> list[float]:
        self._require_up()
        if len(self._open) > self._max_queue:
            raise QueueFull
        return await self._ask("score", [list(ids) for ids in texts], [list(t) for t in types])

    def adapters(self) -> list[str]:
        return list(self._adapters)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter; a restarted process loads it again.

        Raises:
            ValueError: it does not fit the model, or the engine gives no answer with it.
        """
        self._require_up()
        await self._ask("add_adapter", name, str(folder))
        client = self._client
        try:
            await self._answer_once(name)
            await self._answer_once()
        except EngineFailed as error:
            self._restart(client, f"the engine gave no answer with the adapter {name}")
            raise ValueError(
                f"the engine gives no answer with the adapter in {folder} ({error}), so it is "
                "restarted without it: save the adapter again with the PEFT library"
            ) from error
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
        """Why the engine cannot answer now; None if it can."""
        return self._down

    def close(self) -> None:
        self._closing = True
        self._lose("the server is shutting down")
        for task in (self._reviving, self._checking):
            if task:
                task.cancel()
        self._client.close()
        os.close(self._held)

    def _require_up(self) -> None:
        if self._down:
            raise EngineFailed(self._down)

    def _start(self, folder: Path) -> None:
        self._client = WorkerClient(folder, self._description, self._take, self._died)
        self._started = time.monotonic()

    def _begin(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        request = next(self._ids)
        stream = PushedStream(lambda: self._cancel(request), sampling.client)
        self._open[request] = stream
        self._client.send((request, "generate", list(prompt), sampling))
        return stream

    def _cancel(self, request: int) -> None:
        if self._open.pop(request, None):
            self._client.send((request, "cancel"))

    async def _ask(self, what: str, *values: Any) -> Any:
        """Send a request to the process, and wait for the result."""
        request = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[request] = future
        self._client.send((request, what, *values))
        return await future

    def _make_room(self, client: Client) -> None:
        """Take the last place of the client that holds most of them for its weight, of those with
        the lowest priority.

        Raises:
            QueueFull: this client holds as many, or the others' answers have all begun.
        """
        streams = [s for s in self._open.values() if isinstance(s, PushedStream)]
        waiting = [s for s in streams if not s.begun and s.client.priority < client.priority]
        lowest = min((s.client.priority for s in waiting), default=client.priority)
        streams = [s for s in streams if s.client.priority == lowest]
        names = Counter(stream.client.name for stream in streams)
        weights = {s.client.name: s.client.weight for s in streams} | {client.name: client.weight}
        losers = {s.client.name for s in waiting if s.client.priority == lowest} or names
        most = max(losers, key=lambda name: names[name] / weights[name], default=client.name)
        mine = (names[client.name] + 1) / client.weight
        if waiting or names[most] / weights[most] > mine:
            theirs = [stream for stream in streams if stream.client.name == most]
        else:  # a proxy's connections are clients of their own
            of_name = Counter(s.client for s in streams if s.client.name == client.name)
            busiest = max(of_name, key=of_name.__getitem__, default=client)
            if of_name[busiest] <= of_name[client] + 1:
                raise QueueFull
            theirs = [stream for stream in streams if stream.client == busiest]
        waiting = [stream for stream in theirs if not stream.begun]
        if not waiting:
            raise QueueFull
        waiting[-1].revoke(QueueFull())

    def _take(self, events: Sequence[tuple[int, str, Any]]) -> None:
        """Handle messages of the process; some may still concern cancelled requests."""
        for request, what, value in events:
            if request == OF_ALL:
                self._cache_use = value
            elif target := self._open.get(request):
                if what in ENDS:
                    del self._open[request]
                _tell(target, what, value)
                if what == "failed":
                    self._check()

    def _check(self) -> None:
        """Find out in the background whether the engine still gives answers."""
        if self._down is None and not self._closing and self._checking is None:
            self._checking = asyncio.get_running_loop().create_task(self._restart_if_mute())

    async def _restart_if_mute(self) -> None:
        client = self._client
        try:
            await self._answer_once()
        except EngineFailed as error:
            self._restart(client, f"the engine gives no answers any more ({error})")
        finally:
            self._checking = None

    def _restart(self, client: WorkerClient, reason: str) -> None:
        """End this process, unless it has ended already, and start another."""
        if client is self._client and self._down is None and not self._closing:
            client.close()
            self._begin_reviving(f"{reason} and is being restarted")

    def _died(self, code: int) -> None:
        self._begin_reviving(
            f"the engine's process ended (exit code {code}) and is being restarted"
        )

    def _begin_reviving(self, reason: str) -> None:
        self._lose(reason)
        self._reviving = asyncio.get_running_loop().create_task(self._revive())

    def _lose(self, reason: str) -> None:
        self._down = reason
        if self._cache_use is not None:
            self._cache_use = 0.0
        lost, self._open = self._open, {}
        for target in lost.values():
            _tell(target, "failed", reason)

    async def _revive(self) -> None:
        """Start processes until one gives an answer, at growing intervals if they end early.

        No error ends this loop (such as no memory or no descriptor for a process): the server would
        stay without an engine.
        """
        log.error("not ready: %s", self._down)
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._wait = FIRST_WAIT_SECONDS
        while True:
            await asyncio.sleep(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)
            try:
                # Its present path: `stage=build` moves an engine away when it makes another.
                self._start(Path(os.readlink(f"/proc/self/fd/{self._held}")))
                await asyncio.to_thread(self._client.wait_until_open)
                await self._prove()
            except Exception as error:
                if self._closing or self._reviving is not asyncio.current_task():
                    return  # it died during the check: another task restarts it
                self._client.close()
                self._down = f"the engine's process could not be restarted: {error}"
                log.error("not ready: %s", self._down)
                continue
            break
        self._down = None
        log.info("ready: the engine's process was restarted")

    async def _prove(self) -> None:
        """Load the adapters into the new process, and wait for real answers."""
        await self._answer_once()
        for name, folder in list(self._adapters.items()):
            try:
                await self._ask("add_adapter", name, str(folder))
            except (ValueError, EngineFailed) as error:
                if self._reviving is not asyncio.current_task():
                    raise  # the process died of it
                self._leave_out(name, error)
                continue
            try:
                await self._answer_once(name)
                await self._answer_once()
            except EngineFailed as error:
                self._leave_out(name, error)
                raise  # the next process is started without it

    def _leave_out(self, adapter: str, error: Exception) -> None:
        """Go on without an adapter, such as one deleted meanwhile: the others still work."""
        del self._adapters[adapter]
        log.error("without the adapter %s: %s", adapter, error)

    async def _answer_once(self, adapter: str | None = None) -> None:
        """
        Raises:
            EngineFailed: the engine gives no answer.
        """
        if "embeddings" in self.features:
            await self._ask("embed", [[0]])
            return
        if "scores" in self.features:
            await self._ask("score", [[0]], [[0]])
            return
        async for _ in self._begin([0], Sampling(max_tokens=1, temperature=0, adapter=adapter)):
            pass


def _tell(target: PushedStream | asyncio.Future[Any], what: str, value: Any) -> None:
    """Pass a message of the process to its request."""
    if isinstance(target, PushedStream):
        if what == "begun":
            target.prompt_logprobs, target.started, target.cached_tokens = value
        elif what == "drafts":
            target.drafts = value
        elif what == "tokens":
            target.put(value)
        else:
            target.end(_error(what, value))
    elif not target.done():
        if error := _error(what, value):
            target.set_exception(error)
        else:
            target.set_result(value)


def _error(what: str, value: Any) -> Exception | None:
    if what == "failed":
        return EngineFailed(value)
    return ValueError(value) if what == "refused" else None
