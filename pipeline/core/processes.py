"""Processes that end with the one that they work for.

A stage that outlived its command would keep the folder's lock, and a rank that outlived its stage a
GPU. The kernel tells a child of its parent's end (`ends_with_this`), and a thread learns of the end
of any other process, such as a grandparent (`end_with`). Both work however the other one ends.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
ENDED = 130  # exit code of a process that ends with another, as of one that Ctrl-C ended


@dataclass(frozen=True)
class Process:
    """A process. Its start time distinguishes it from a later one with the same pid."""

    pid: int
    started: float  # seconds since 1970

    @classmethod
    def this(cls) -> "Process":
        import psutil

        return cls(os.getpid(), psutil.Process().create_time())

    @classmethod
    def parse(cls, text: str) -> "Process | None":
        """The process that str() wrote; None if the text says something else."""
        pid, _, started = text.partition(":")
        try:
            return cls(int(pid), float(started))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.pid}:{self.started}"

    def is_alive(self) -> bool:
        import psutil

        try:
            process = psutil.Process(self.pid)
            running = process.status() != psutil.STATUS_ZOMBIE
            return running and self.is_same(Process(self.pid, process.create_time()))
        except (psutil.Error, ValueError, OverflowError):  # no such pid, or no pid at all
            return False

    def is_same(self, other: "Process") -> bool:
        """Whether both are the same process. Start times may shift when the clock is set."""
        return self.pid == other.pid and abs(self.started - other.started) < 5


def ends_with_this(number: int = signal.SIGTERM) -> Callable[[], None]:
    """For `preexec_fn` of Popen: the child gets this signal when the calling thread ends."""
    parent, libc = os.getpid(), CDLL(None)

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended before the line above, so no signal comes
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have this process get a signal when its parent ends.

    parent: its pid, as the parent said; if it has ended already, so does this process.
    """
    CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(ENDED)


def end_with(others: Sequence[Process]) -> None:
    """End this process at once when any of these ends, or if one has ended already.

    Nothing is tidied up, as after SIGKILL; its own children get the signal of `ends_with_this`.
    """
    poll, watched = select.poll(), {}
    for other in others:
        try:
            descriptor = os.pidfd_open(other.pid)
        except ProcessLookupError:
            _end(other)
        except OSError:  # a sandbox without it: then nothing is watched
            continue
        if not other.is_alive():  # checked now that the pid cannot be given to another
            _end(other)
        poll.register(descriptor, select.POLLIN)
        watched[descriptor] = other

    def wait() -> None:
        _end(watched[poll.poll()[0][0]])

    if watched:
        threading.Thread(target=wait, name="end_with", daemon=True).start()


def _end(other: Process) -> NoReturn:
    line = f"pipeline: the command that started this stage (process {other.pid}) ended: stopping\n"
    try:
        os.write(2, line.encode())
    finally:
        os._exit(ENDED)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """While the block is open, SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that it cleans
    up: containers, systemd and `timeout` send it. Only the main thread can handle signals; in
    another one the block runs without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
