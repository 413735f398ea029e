"""NeMo is imported within its session, where that is quick."""

import subprocess
import sys


def test_nemo_imported_before_its_session_is_refused() -> None:
    code = (
        "import sys, types; sys.modules['nemo'] = types.ModuleType('nemo'); "
        "from pipeline.training.nemo.session import nemo_session; nemo_session().__enter__()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "nemo was imported outside nemo_session()" in run.stderr
