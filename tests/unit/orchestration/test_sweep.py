"""Sweeps: the runs that are made of a command, what is refused, and the table."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.orchestration import arguments, compose, project, sweep
from pipeline.orchestration.sweep import Result, results_table
from tests.made_artifacts import make_artifact, make_chain


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project.init(tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def run(*words: str) -> int:
    return sweep.run_sweep(arguments.parse(["-m", "tracking.enabled=false", *words]))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Stages that ran, with their settings; each makes an artifact, and seed=3 fails."""
    ran = []

    def stage(command: list[str], folder: Path, environment: Any) -> int:
        tree = yaml.safe_load(Path(command[command.index("--params") + 1]).read_text())
        name = command[-1].removeprefix("stage=")
        ran.append((name, tree))
        if tree["seed"] == 3:
            return 5
        metrics = {"steps": 7.0, "validation_loss": 1 / tree["seed"]}
        make_artifact(folder / tree["artifacts"], name, "any", metrics=metrics)
        return 0

    monkeypatch.setattr(sweep, "run_command", stage)
    return ran


def shown(table: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_run_has_settings_and_artifacts_of_its_own(
    shop: Path, started: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("stage=prepare", "seed=1,2", "prepare.samples=0,5") == 0
    found = [(name, t["seed"], t["prepare"]["samples"]) for name, t in started]
    assert found == [("prepare", s, n) for s in (1, 2) for n in (0, 5)]
    places = [tree["artifacts"] for _, tree in started]
    assert len(set(places)) == 4
    (folder,) = (shop / "artifacts" / "sweeps").iterdir()
    assert sorted(places) == [f"artifacts/sweeps/{folder.name}/{n}" for n in range(4)]
    said = capsys.readouterr().err
    assert said.count("done") == 4
    assert "validation loss" in said


def test_the_same_command_finds_the_same_folder(shop: Path, started: list) -> None:
    run("stage=prepare", "seed=1,2")
    run("stage=prepare", "seed=1,2")
    run("stage=prepare", "seed=1,4")
    assert len(list((shop / "artifacts" / "sweeps").iterdir())) == 2


def test_a_run_that_fails_leaves_the_others(
    shop: Path, started: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("stage=all", "seed=3,4") == 5
    assert [name for name, tree in started if tree["seed"] == 3] == ["prepare"]
    assert "register" in [name for name, tree in started if tree["seed"] == 4]
    assert "gate failed in prepare" in capsys.readouterr().err


def test_a_single_stage_reads_what_the_project_made(shop: Path, started: list) -> None:
    with pytest.raises(ArtifactError, match="artifacts/import does not exist"):
        run("stage=merge", "model.dtype=bfloat16,float32")
    assert not (shop / "artifacts").exists()
    for name in ("import", "finetune"):
        make_artifact(shop / "artifacts", name, "any")
    run("stage=merge", "model.dtype=bfloat16,float32")
    (linked,) = (shop / "artifacts" / "sweeps").glob("*/1/import/data.txt")
    assert os.path.samefile(linked, shop / "artifacts" / "import" / "data.txt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stage=prepare", "seed=1,-2"], "seed=-2: Input should be greater than or equal to 0"),
        (["stage=prepare", "sed=1,2"], "sed is not a setting"),
        (["stage=prepare", "quantize=fp8,fp9"], "quantize=fp9 does not exist"),
        (["stage=serve", "seed=1,2"], "stage=serve takes no --multirun"),
        (["stage=prepare", "seed=1,2", "artifacts=x"], "artifacts=x cannot be set with --multirun"),
        (["stage=prepare", "seed=1,2", "launcher=torchrun"], "launcher=torchrun cannot be set"),
        (["stage=prepare", "seed=1,2", "launcher=slurm"], "launcher.account is not set"),
        (
            [
                "stage=prepare",
                "seed=1,2",
                "launcher=slurm",
                "launcher.account=null",
                "launcher.partition=p",
                "launcher.container_image=null",
                "launcher.job_folder=j",
                "launcher.nodes=2",
            ],
            "each run of a sweep is a task on one machine",
        ),
        (["seed=1,2"], "give one stage="),
    ],
)
def test_a_wrong_combination_is_refused_before_any_runs(
    shop: Path, started: list, words: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(*words)
    assert not started
    assert not (shop / "artifacts").exists()


def test_the_table_shows_what_differs() -> None:
    results = [
        Result(0, ("seed=1", "quantize=fp8", "model.dtype=float32"), 0, "all", {"a": 0.5, "b": 1}),
        Result(1, ("seed=2", "quantize=fp8", "model.dtype=float32"), 0, "all", {"a": 0.25, "b": 1}),
        Result(2, ("seed=3", "quantize=fp8", "model.dtype=float32"), 9, "merge"),
    ]
    lines = [line.split() for line in shown(results_table(results)).splitlines() if line.strip()]
    assert lines[0] == ["run", "seed", "state", "a", "b"]
    assert lines[2] == ["0", "1", "done", "0.5", "1"]
    assert lines[3] == ["1", "2", "done", "0.25", "1"]
    assert lines[4] == ["2", "3", "exit", "code", "9", "in", "merge"]


@pytest.mark.parametrize(
    ("key", "titles"),
    [
        ("finetune.max_steps", ["learning_rate", "max_steps"]),
        ("other.learning_rate", ["finetune.learning_rate", "other.learning_rate"]),
    ],
)
def test_the_table_names_a_setting_by_its_last_part_where_that_is_clear(
    key: str, titles: list[str]
) -> None:
    both = [(f"finetune.learning_rate={n}", f"{key}={n}") for n in (1, 2)]
    table = results_table([Result(n, given, 0, "all") for n, given in enumerate(both)])
    assert [column.header for column in table.columns] == ["run", *titles, "state"]


def test_results_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    content = {"number": 0, "overrides": ["seed=1"], "code": 0, "stage": "all", "metrics": {}}
    (tmp_path / "0" / "result.json").write_text(json.dumps(content))
    for number, text in enumerate(("", "{", "[]", "3", '{"number": "x"}', "[" * 100_000), 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "result.json").write_text(text)
    (tmp_path / "7" / "result.json").mkdir(parents=True)
    (result,) = sweep.read_results(tmp_path)
    assert (result.number, result.state) == (0, "done")


def test_runs_are_compared_by_what_is_served(tmp_path: Path) -> None:
    """And not by a simulated format."""
    make_chain(tmp_path)
    config = compose.from_command_line(["stage=all", f"artifacts={tmp_path}"])[2]
    assert sweep._figures("all", config) == {"exact_match/tuned": 0.93, "exact_match/served": 0.9}
