"""The examples run as their first lines say."""

import re
import subprocess
import sys
from pathlib import Path

from pipeline.core.paths import ROOT


def test_fine_tuning_from_python(tmp_path: Path) -> None:
    quick = ["--max-steps", "6", "--max-new-tokens", "2"]
    command = [sys.executable, "-m", "examples.python_api", "--out", str(tmp_path), *quick]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    losses = re.search(r"loss on the test answers: ([\d.]+) → ([\d.]+)", done.stdout)
    assert losses
    assert float(losses[2]) < float(losses[1])
    assert (tmp_path / "merge/model.safetensors").is_file()
    assert f"a Hugging Face folder: {tmp_path / 'merge'}" in done.stdout
