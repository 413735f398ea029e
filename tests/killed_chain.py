"""The chain itself, killed at random moments: `stage=all` in a clone, nothing replayed."""

import fcntl
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.core.paths import ROOT
from pipeline.orchestration.runner import GRAPH_LOCK, STAGE_LOCK
from tests.replayed_chain import Counts, Ended
from tests.same_files import differing

AFTER = (2.0, 40.0)  # seconds from a start to a kill
TO_END = 60.0  # seconds in which everything that a killed command started must have ended
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SENDER = "sender_process"  # outlives its command, and sends what it left


def kill_chain(undisturbed: Path, times: int, counts: Counts, chance: random.Random) -> None:
    """Kill `stage=all` so many times, let it end, and compare its files with an undisturbed run's.

    Raises:
        SystemExit: this clone has artifacts already.
    """
    artifacts = ROOT / "artifacts"
    if (artifacts / "prepare").exists():
        raise SystemExit(f"{artifacts} is not empty: run this in a fresh clone")
    for number in range(1, times + 1):
        what, done = _kill_once(chance)
        counts.see(what, done, most_lines=2)
        if still := _holders(artifacts):
            counts.lost.append(f"{what}: {still} is still held after {TO_END:.0f} s")
        made = sum(1 for _ in artifacts.glob("*/manifest.json"))
        counts.tell(f"kill {number} of {times}: {what}; {made} artifacts are whole")
    done = _end(*_start())
    if done.code:
        counts.lost.append(f"a plain run then: {done.code}: {done.said[-2000:]}")
        return
    wrong, compared, _ = differing(artifacts, undisturbed)
    counts.lost += [f"{name} is not as in the undisturbed run" for name in wrong]
    print(f"{compared} files compared with the undisturbed run's, {len(wrong)} differ", flush=True)


def _start() -> tuple["subprocess.Popen[bytes]", Path]:
    with tempfile.NamedTemporaryFile(prefix="killed-", delete=False) as output:
        command = [sys.executable, "-m", "pipeline", "stage=all"]
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output), Path(output.name)


def _end(process: "subprocess.Popen[bytes]", output: Path) -> Ended:
    code = process.wait()
    text = output.read_text(errors="replace")
    output.unlink()
    return Ended(code, text)


def _kill_once(chance: random.Random) -> tuple[str, Ended]:
    """What was done, and how the command ended."""
    process, output = _start()
    after, number = chance.uniform(*AFTER), chance.choice(SIGNALS)
    deadline = time.monotonic() + after
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    victim, name = process.pid, "the command"
    if chance.random() < 0.4:
        number = signal.SIGKILL
        victim, name = _descendant(process.pid, chance) or (victim, name)
    what = f"{name} got {number.name} after {after:.1f} s"
    if process.poll() is not None:
        return f"ended before {what}", _end(process, output)
    psutil.Process(victim).send_signal(number)
    if victim != process.pid:
        try:
            process.wait(TO_END)
        except subprocess.TimeoutExpired:  # it can do without that process
            process.send_signal(signal.SIGKILL)
            what += ", and the command SIGKILL later"
    return what, _end(process, output)


def _descendant(pid: int, chance: random.Random) -> tuple[int, str] | None:
    """A process that a command started, and its name; None if there is none."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words and not any(SENDER in word for word in words):
            found.append((child.pid, " ".join(words)[-60:]))
    return chance.choice(found) if found else None


def _holders(artifacts: Path) -> str:
    """The lock that is still held; empty if none is."""
    deadline = time.monotonic() + TO_END
    held = ""
    for lock in (GRAPH_LOCK, STAGE_LOCK):
        while True:
            try:
                with (artifacts / lock).open("a") as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except FileNotFoundError:
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    held = lock
                    break
                time.sleep(0.05)
    return held
