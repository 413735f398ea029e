"""One record in a table is all that a weight format or a model family takes.

Each script adds its record in a process of its own, then runs commands and stages on tiny models.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.paths import ROOT


@pytest.mark.parametrize("script", ["added_format", "added_family"])
def test_an_added_record_goes_through_commands_and_stages(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"tests.integration.{script}", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
