"""Tries out guides in a few processes before an engine gets them: limited, cancellable, in turns.

What was found is remembered, refusals too. When the client of a guide that takes long has left, its
process is ended and another takes its place.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.paths import ROOT
from pipeline.engines.base import Client, EngineFailed, Guide
from pipeline.engines.batching.guide_errors import NOUNS, Unusable
from pipeline.engines.batching.turns import Turns
from pipeline.serving.guides.process import CPU_SECONDS, MEMORY_BYTES

PROCESSES = 2
REMEMBERED = 256  # guides
MOST_BYTES = 1 << 18  # of a guide's text
EXIT_SECONDS = 10  # of a process that has closed its output
GRACE_SECONDS = 0.25  # for a guide whose client has left: starting a process takes as long


@dataclass(eq=False)
class _Job:
    guide: Guide
    client: Client
    done: "asyncio.Future[Guide]"
    task: "asyncio.Task[None] | None" = None


@dataclass
class GuideChecker:
    """
    Args:
        tokenizer: the model's tokenizer, in JSON. stop_ids: tokens that end its answers.
        cpu_seconds, memory_bytes: limits of one guide.
    """

    tokenizer: str
    stop_ids: Sequence[int]
    cpu_seconds: float = CPU_SECONDS
    memory_bytes: int = MEMORY_BYTES
    _known: "OrderedDict[bytes, Guide | str]" = field(default_factory=OrderedDict)
    _waiting: list[_Job] = field(default_factory=list)
    _running: list[_Job] = field(default_factory=list)
    _idle: "list[_Process]" = field(default_factory=list)
    _turns: Turns = field(default_factory=Turns)
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(PROCESSES, "guides")
    )

    async def check(self, guide: Guide, client: Client) -> Guide:
        """The guide in the form for engines.

        Raises:
            ValueError: it cannot be followed, or takes too long or too much memory to prepare.
        """
        if len(guide.text) > MOST_BYTES:
            raise Unusable(
                f"the {NOUNS[guide.kind]} has {len(guide.text)} characters: at most {MOST_BYTES} "
                "are allowed"
            )
        key = hashlib.sha256(f"{guide.kind} {guide.text}".encode(errors="surrogatepass")).digest()
        found = self._known.get(key)
        if found is None:
            try:
                found = await self._tried_out(guide, client)
            except Unusable as error:
                found = str(error)
            self._known[key] = found
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        if isinstance(found, str):
            raise Unusable(found)
        return found

    def close(self) -> None:
        """End the processes."""
        for job in self._running:
            if job.task:
                job.task.cancel()
        while self._idle:
            self._idle.pop().end()
        self._threads.shutdown(wait=False)

    async def _tried_out(self, guide: Guide, client: Client) -> Guide:
        loop = asyncio.get_running_loop()
        job = _Job(guide, client, loop.create_future())
        self._waiting.append(job)
        self._start_next()
        try:
            return await job.done
        except asyncio.CancelledError:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job.task:
                loop.call_later(GRACE_SECONDS, job.task.cancel)
            raise

    def _start_next(self) -> None:
        while self._waiting and len(self._running) < PROCESSES:
            job = self._waiting.pop(self._turns.next(self._waiting, self._running))
            self._running.append(job)
            job.task = asyncio.get_running_loop().create_task(self._run(job))

    async def _run(self, job: _Job) -> None:
        loop = asyncio.get_running_loop()
        process = self._idle.pop() if self._idle else _Process(self.cpu_seconds, self.memory_bytes)
        try:
            found = await loop.run_in_executor(self._threads, self._ask, process, job.guide)
            if not job.done.done():
                job.done.set_result(found)
        except Exception as error:
            if not job.done.done():
                job.done.set_exception(error)
        except asyncio.CancelledError:
            process.end()
            raise
        finally:
            if process.ended:
                process.end()
            else:
                self._idle.append(process)
            self._running.remove(job)
            self._start_next()

    def _ask(self, process: "_Process", guide: Guide) -> Guide:
        """Runs in a thread.

        Raises:
            Unusable: the guide cannot be followed, or has ended the process by one of its limits.
            EngineFailed: the process cannot be started.
        """
        if not process.started:
            question = {"tokenizer": self.tokenizer, "stop_ids": list(self.stop_ids)}
            if process.ask(question) is None:
                raise EngineFailed("the process that tries out guides cannot be started")
        found = process.ask({"kind": guide.kind, "text": guide.text})
        if found is None:
            by_time = process.wait() == -signal.SIGPROF
            limit = (
                f"{self.cpu_seconds:g} s of processor time"
                if by_time
                else f"{self.memory_bytes >> 20} MiB of memory"
            )
            raise Unusable(
                f"the {NOUNS[guide.kind]} takes more than {limit} to prepare: ask for less in it, "
                "such as smaller numbers in multipleOf, repetitions and lengths, or fewer choices"
            )
        if "error" in found:
            raise Unusable(found["error"])
        return Guide(**found)


class _Process:
    """A process that tries out guides, one at a time."""

    def __init__(self, cpu_seconds: float, memory_bytes: int) -> None:
        self._arguments = (str(cpu_seconds), str(memory_bytes))
        self._process: subprocess.Popen[bytes] | None = None
        self._is_unwanted = self._is_asking = False

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def ask(self, question: dict[str, Any]) -> Any:
        """The answer; None if the process has ended."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.serving.guides.process", *self._arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Arenas and threads would count as memory of the guide.
                env={**os.environ, "MALLOC_ARENA_MAX": "2", "RAYON_NUM_THREADS": "1"},
            )
            if self._is_unwanted:
                self.end()
        assert self._process.stdin
        assert self._process.stdout
        self._is_asking = True
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):  # ValueError: the pipe is closed
            line = b""
        finally:
            self._is_asking = False
        if line.endswith(b"\n"):
            return json.loads(line)
        self.wait()
        return None

    def wait(self) -> int:
        """Its exit code; it has closed its output, so it ends soon."""
        assert self._process
        try:
            return self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def end(self) -> None:
        """Kill it; a thread that waits for its answer gets None."""
        self._is_unwanted = True
        if self._process:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe and not self._is_asking:
                    with suppress(OSError):
                        pipe.close()
