"""A server in a child process."""

import os
import subprocess
import sys

import pytest

from pipeline.core.errors import PipelineError
from pipeline.serving.server_process import RunningServer

SIZE = 150 * 2**20
# A server that holds little, and its engine's process, which holds much and let go of it.
ENGINE = f"held = bytes(range(256)) * ({SIZE} // 256); del held; print(flush=True); input()"
SERVER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ENGINE!r}])"


def test_peak_memory_is_that_of_the_engines_process_too() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        found = RunningServer("", process.pid, 0).peak_memory_bytes()
        process.communicate(b"\n")
    assert SIZE < found < SIZE + 100 * 2**20
    with pytest.raises(PipelineError, match=f"process {process.pid} cannot be inspected"):
        RunningServer("", process.pid, 0).peak_memory_bytes()


def test_a_process_without_others_counts_for_itself() -> None:
    assert RunningServer("", os.getpid(), 0).peak_memory_bytes() > 2**20
