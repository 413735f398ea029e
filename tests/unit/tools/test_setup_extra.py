"""tools/setup_extra.sh: where an extra is installed, and from where."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.core.paths import ROOT

UV = """#!/bin/sh
echo "$PWD|$*" >> "$LOG"
"""


@pytest.mark.parametrize("own", [False, True])
def test_an_extra_is_installed_outside_of_the_projects_settings(own: bool, tmp_path: Path) -> None:
    """[tool.uv] of pyproject.toml leaves Ray out, and uv would leave it out of the extra, too."""
    project = tmp_path / "project"
    (project / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "setup_extra.sh", project / "tools")
    (project / "extras").mkdir()
    (project / "extras" / "x.lock").write_text("x==1")
    if own:
        (project / "extras" / "x.in").write_text("x")
    uv = project / ".venv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(UV)
    uv.chmod(0o755)
    log = tmp_path / "log"
    done = subprocess.run(
        ["sh", "tools/setup_extra.sh", "x"], cwd=project, capture_output=True, text=True,
        env={**os.environ, "LOG": str(log), "PYTHON": "python3"}, check=True,
    )  # fmt: skip
    environment = project / (".venv-x" if own else ".venv")
    assert done.stdout == f"setup: installing the extra x into {environment.name}\n"
    folder, _, words = log.read_text().splitlines()[-1].partition("|")
    assert not Path(folder).is_relative_to(project)
    assert words.startswith("pip install")
    assert f"--python {environment}/bin/python" in words
    assert words.endswith(f"--require-hashes -r {project}/extras/x.lock")
