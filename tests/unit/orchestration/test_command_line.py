"""Options of the command line: Hydra's own, the help of a stage, and an old params.yaml."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.orchestration import compose
from pipeline.orchestration.arguments import Command, parse
from pipeline.orchestration.stage_help import stage_help


def test_options_and_overrides_mix_in_any_order() -> None:
    command = parse(["seed=1,2", "-m", "stage=all", "a.b=c"])
    assert command == Command("all", ("seed=1,2", "a.b=c"), multirun=True)
    assert parse(["--info", "seed=1"]) == Command(None, ("seed=1",), prints="info", kind="all")
    command = parse(["--cfg", "job", "-p", "finetune", "--resolve"])
    assert command == Command(prints="config", kind="job", package="finetune", resolve=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cfg"], "--cfg needs one of job, hydra, all"),
        (["--cfg", "jobs"], "--cfg jobs does not exist: choose from job, hydra, all"),
        (["--info", "default"], "--info default does not exist: choose from all, config"),
        (["--package"], "--package needs a section"),
        (["--multi"], "'--multi' is not of the form key=value"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(arguments)


def test_hydra_prints_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "finetune=sft"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["finetune"]["method"] == "sft"
    assert main(["--cfg", "job", "-p", "nothing"]) == 2
    assert capsys.readouterr().err == "pipeline: ConfigError: --package nothing is not a section\n"
    assert main(["--info", "defaults-tree"]) == 0
    assert "finetune: lora" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"pipeline \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_of_a_stage_shows_its_settings_alone() -> None:
    text = stage_help("finetune", ["finetune=sft"])
    assert text.startswith("stage=finetune\n\nNeMo checkpoint and dataset")
    assert "Reads: artifacts/prepare, artifacts/import\nMakes: artifacts/finetune\n" in text
    assert "  finetune.method=sft\n" in text
    assert "  finetune.learning_rate=0.002\n      number, > 0, ≤ 1" in text
    assert (
        "  finetune.pack_length=null\n      integer or null, ≥ 8, ≤ 16,777,216: Tokens of" in text
    )
    assert "quantize." not in text


@pytest.mark.parametrize("stage", compose.stage_names())
def test_every_stage_has_a_help(stage: str) -> None:
    assert stage_help(stage).startswith(f"stage={stage}\n\n")


def test_the_settings_of_a_launcher_are_those_of_the_chosen_one() -> None:
    from pipeline.orchestration import stage_help as module

    needed = ["account=a", "partition=b", "container_image=c", "job_folder=/d"]
    tree = compose.compose(["launcher=slurm", *(f"launcher.{setting}" for setting in needed)])
    lines = list(module._section("launcher", tree, Config.model_json_schema()))
    assert any("launcher.partition=b" in line for line in lines)
    assert not any("claim" in line for line in lines)


def old(tmp_path: Path, change) -> str:
    """What is said of a params.yaml that another version wrote."""
    tree = compose.compose([])
    change(tree)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as caught:
        compose.from_command_line(["--params", str(file), "stage=finetune"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_old_params_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    again = ": run `python -m pipeline stage=all` with your settings, which writes it anew"
    start = "params.yaml was written by another version: it has "
    said = old(tmp_path, lambda tree: tree["finetune"].update(warmup=3))
    assert said == f"{start}finetune.warmup, which this version does not know{again}"
    said = old(tmp_path, lambda tree: tree["finetune"]["adapter"].pop("rank"))
    assert said == f"{start}no finetune.adapter.rank, which this version needs{again}"
    for section in ("model", "plan", "seed"):
        said = old(tmp_path, lambda tree, section=section: tree.pop(section))
        assert said == f"{start}no {section}, which this version needs{again}"
    assert old(tmp_path, lambda tree: tree.update(seed=-1)).startswith("seed=-1: ")
