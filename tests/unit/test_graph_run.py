"""The whole graph: one run at a time, whose settings no other changes."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import compose, graph, graph_run
from pipeline.config import load
from pipeline.errors import Busy


class Stopped(Exception):
    """Where DVC would have begun."""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the checkout, with settings of its own."""
    for file in graph.DECLARATIONS:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(graph.ROOT / file, tmp_path / file)
    monkeypatch.setattr(graph, "ROOT", tmp_path)
    monkeypatch.setattr(graph_run, "ROOT", tmp_path)
    monkeypatch.setattr(compose, "PARAMS", tmp_path / "params.yaml")
    return tmp_path


def run(checkout: Path, *overrides: str) -> None:
    where = [f"artifacts={checkout / 'artifacts'}", "tracking.enabled=false"]
    tree = compose.compose([*where, *overrides])
    graph_run.run_graph(tree, load(tree))


def test_a_second_run_leaves_the_settings_of_the_one_that_runs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dvc(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(subprocess, "run", lambda *a, **o: pytest.fail("DVC started twice"))
        with pytest.raises(Busy, match=r"in use by process .* wait for it"):
            run(checkout, "seed=2")
        raise Stopped

    monkeypatch.setattr(subprocess, "run", dvc)
    with pytest.raises(Stopped):
        run(checkout, "seed=1")
    assert yaml.safe_load((checkout / "params.yaml").read_text())["seed"] == 1
    monkeypatch.setattr(subprocess, "run", lambda *a, **o: subprocess.CompletedProcess(a, 1))
    run(checkout, "seed=2")
    assert yaml.safe_load((checkout / "params.yaml").read_text())["seed"] == 2


def test_settings_are_replaced_whole(checkout: Path) -> None:
    compose.write_params(compose.compose([]))
    with compose.PARAMS.open() as reading:
        compose.write_params(compose.compose(["seed=2"]))
        assert yaml.safe_load(reading)["seed"] == 1
    assert not list(checkout.glob("*.tmp"))
