"""A small share of the harnesses that break stages off; both are run whole by hand."""

import subprocess
import sys

import pytest

from pipeline.core.paths import ROOT


@pytest.mark.parametrize(
    "harness",
    [
        ["tests.kills", "--random", "1", "--every", "3", "--stages", "register"],
        ["tests.full_disk", "--steps", "2", "--stages", "register"],
    ],
)
def test_a_stage_that_is_broken_off_loses_nothing(harness: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *harness], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        assert "0 tracebacks, 0 silent, 0 lost" in line or "no tmpfs" in line
