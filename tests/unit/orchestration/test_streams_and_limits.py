"""Standard streams, folders and limits that fail: one line and a documented exit code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__ as entry
from pipeline.core.console import get_console
from pipeline.core.errors import DataError, ResourceError
from pipeline.core.paths import ROOT
from pipeline.core.resource_errors import explained, resource_errors

FULL = Path("/dev/full")


def shell(command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", "-c", command.replace("pipeline", f"{shlex.quote(sys.executable)} -m pipeline")],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("pipeline --version > /dev/full", 9, "standard output cannot be written (No space left"),
        ("pipeline --version >&-", 0, ""),
        ("pipeline --version 2>&-", 0, ""),
        ("pipeline stage=none 2> /dev/full", 2, ""),
        ("pipeline stage=none 2>&-", 2, ""),
        ("pipeline --help | head -1", 0, ""),
    ],
)
def test_streams_that_cannot_be_written(command: str, code: int, said: str) -> None:
    done = shell(command)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) == bool(said)
    assert "Traceback" not in done.stderr


def test_a_working_folder_that_was_deleted_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"cd {gone} && rmdir {gone} && pipeline stage=prepare", PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr == (
        "pipeline: ConfigError: the working folder was deleted: change to one that exists\n"
    )


def test_progress_that_nobody_can_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = FULL.open("w", buffering=1)
    for stream in (full, None):
        monkeypatch.setattr(sys, "stderr", stream)
        get_console.cache_clear()
        get_console().print("step 3")
    get_console.cache_clear()
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        full.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "disk"),
        (OSError(122, "Disk quota exceeded"), "disk"),
        (OSError(27, "File too large", "x"), r"x is larger than .* `ulimit -f` allows"),
        (OSError(24, "Too many open files"), "raise `ulimit -n`"),
        (OSError(11, "Resource temporarily unavailable"), "raise `ulimit -u`"),
        (OSError(12, "Cannot allocate memory"), "memory ran out"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("can't start new thread"), "memory ran out"),
        (ImportError("x.so: failed to map segment from shared object"), "memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory ran"),
        (OSError(30, "Read-only file system", "/x/y"), "/x/y cannot be used"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y cannot be used"),
        (OSError(5, "Input/output error", "/x/y"), "/x/y cannot be used"),
    ],
)
def test_what_the_machine_lacks_is_said_in_one_line(
    error: Exception, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In a stage and outside of one."""
    here = said.replace("x is", "is")  # the stage's folder is named in place of the file
    scratch = tmp_path / ".work" / "first-0"
    with pytest.raises(ResourceError, match=here) as caught, resource_errors(scratch):
        raise error
    assert "\n" not in str(caught.value)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(entry, "_run", fail)
    assert entry.main(["stage=prepare"]) == 9
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)


def test_an_error_that_was_handled_before_is_not_the_cause() -> None:
    """A bug in the handling of a missing permission is a bug."""
    bug = KeyError("name")
    bug.__context__ = PermissionError(13, "Permission denied", "/x")
    assert explained(bug) is None
    assert explained(DataError("rows")) is None
    assert explained(ValueError("x")) is None


@pytest.mark.parametrize("limit", ["-v 190000", "-f 0"])
def test_limits_of_the_shell_end_in_one_line(limit: str, tmp_path: Path) -> None:
    done = shell(
        f"ulimit {limit}; pipeline stage=prepare artifacts={tmp_path}/made tracking.enabled=false",
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.returncode == 9, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("pipeline: ResourceError: ")
