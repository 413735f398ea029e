"""The wheel: what it holds, and a project made with it, far from any checkout."""

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from pipeline.core.paths import ROOT


def command(*words: str, cwd: Path, path: Path) -> str:
    """Standard output and error of a command that finds the wheel's packages first."""
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as pip would install it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index"]
    before = set(ROOT.iterdir())
    command(*build, "-w", str(folder), cwd=folder, path=folder)
    assert set(ROOT.iterdir()) == before, "the build leaves files in the checkout"
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_it_holds_every_file_of_the_package_and_of_conf(site: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "pipeline", "conf"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in tracked:
        place = name if name.startswith("pipeline/") else f"pipeline/{name}"
        assert (site / place).is_file(), f"{name} is not in the wheel"
    assert not list(site.glob("tests")) + list(site.glob("tools")) + list(site.rglob("setup.py"))


def wait_for_sender(project: Path) -> None:
    """Until the process that sends runs to MLflow has ended: it writes where the project was."""
    deadline = time.monotonic() + 120
    while any(str(project) in word for word in _words_of_processes()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _words_of_processes() -> list[str]:
    processes = psutil.process_iter(["cmdline"])
    return [word for process in processes for word in process.info["cmdline"] or ()]


def test_a_project_made_with_it_runs(site: Path, tmp_path: Path) -> None:
    said = command("-m", "pipeline", "init", "shop", cwd=tmp_path, path=site)
    assert "run `cd shop && python -m pipeline stage=all`" in said
    shop = tmp_path / "shop"
    # By DVC, as `stage=all` runs it: dvc.yaml's commands must work here too.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "prepare"], cwd=shop, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(site), "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    assert (shop / "artifacts" / "prepare" / "manifest.json").is_file()
    wait_for_sender(shop)
    moved = shop.rename(tmp_path / "moved")
    said = command("-m", "pipeline", "stage=prepare", cwd=moved / "data", path=site)
    assert "prepare: up to date (artifacts/prepare)" in said
    assert str(ROOT) not in (moved / "artifacts" / "prepare" / "manifest.json").read_text()
    assert (moved / "artifacts" / "mlflow").is_dir() or (moved / "artifacts" / ".tracking").is_dir()
    assert not (tmp_path / "shop").exists()
