"""Processes that end with another, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.core.paths import ROOT
from pipeline.core.processes import ENDED, Process


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, signal, subprocess, sys
from pathlib import Path
from pipeline.core.processes import ends_with_this
sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
process = subprocess.Popen(sleeper, preexec_fn=ends_with_this())
Path({str(tmp_path / "child")!r}).write_text(str(process.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
    assert ends(int((tmp_path / "child").read_text()))


def waiting(other: Process) -> "subprocess.Popen[bytes]":
    """A process that ends with another, which is not its parent."""
    code = (
        "import sys, time; from pipeline.core.processes import Process, end_with;"
        "end_with([Process.parse(sys.argv[1])]); print(flush=True); time.sleep(60)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(other)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_process_ends_with_one_that_is_not_its_parent() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep) as other, waiting(Process(other.pid, time.time())) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        assert process.poll() is None
        other.send_signal(signal.SIGKILL)
        assert process.wait(10) == ENDED
        assert f"(process {other.pid}) ended" in process.stderr.read().decode()


def test_a_process_ends_at_once_if_the_other_has_ended() -> None:
    this = Process.this()
    for gone in (Process(2**22 - 1, 0.0), Process(this.pid, this.started - 60)):
        with waiting(gone) as process:
            assert process.wait(10) == ENDED


def test_a_process_is_named_in_text() -> None:
    this = Process.this()
    assert this.pid == os.getpid()
    assert Process.parse(str(this)) == this
    assert this.is_alive()
    for text in ("", "12", "a:b", "12:", ":3"):
        assert Process.parse(text) is None
