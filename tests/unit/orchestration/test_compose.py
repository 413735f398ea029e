"""The command line's configuration: defaults, overrides, and refusals that say what is allowed."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from pipeline.config.schema import load
from pipeline.core.errors import ConfigError
from pipeline.core.paths import ROOT
from pipeline.orchestration import compose
from pipeline.orchestration.help import help_text


def refusal(*arguments):
    with pytest.raises(ConfigError) as caught:
        compose.from_command_line(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_valid_and_params_yaml_holds_them():
    stage, tree, config = compose.from_command_line(["stage=prepare"])
    assert stage == "prepare"
    assert config.finetune.method == "lora"
    # A fresh clone's `dvc repro` runs params.yaml: it must be what conf/ says.
    assert yaml.safe_load((ROOT / "params.yaml").read_text()) == tree


def test_every_option_of_every_group_is_valid():
    for group in sorted(p for p in (ROOT / "conf").iterdir() if p.is_dir()):
        for option in sorted(group.glob("*.yaml")):
            asked = re.findall(r"^(\w+): \?\?\?", option.read_text(), re.MULTILINE)
            lists = ("train", "test")
            given = [f"{group.name}.{key}={'[a]' if key in lists else 'x'}" for key in asked]
            given += ["data.test=[a]"] * (option.stem == "files")  # or data.test_share
            given += ["model.path=/m"] * (group.name == "experiment")
            given += ["engine.arguments.base_url=http://h/v1"] * (option.stem == "remote")
            load(compose.compose([f"{group.name}={option.stem}", *given]))


def test_overrides_reach_the_typed_configuration():
    arguments = ["stage=finetune", "finetune=sft", "finetune.max_steps=50", "quantize=int4_awq"]
    _, _, config = compose.from_command_line(arguments)
    assert (config.finetune.method, config.finetune.max_steps) == ("sft", 50)
    assert config.quantize.format == "int4_awq"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stage=prepar"], "stage=prepar does not exist: did you mean prepare?"),
        ([], "give one stage="),
        (["stage=prepare", "stage=merge"], "give one stage="),
        (["stage=all", "quantize=int4"], "quantize=int4 does not exist: did you mean int4_awq?"),
        (["stage=all", "quantize.formt=fp8"], "did you mean quantize.format?"),
        (["stage=all", "sed=3"], "sed is not a setting: did you mean seed?"),
        (["stage=all", "seed=-1"], "seed=-1: Input should be greater than or equal to 0"),
        (["stage=all", "seed=many"], "seed='many': Input should be a valid integer"),
        (["stage=all", "finetune.method=qlora"], "Input should be 'lora', 'dora' or 'sft'"),
        (["stage=all", "prepare.validation_share=1.5"], "less than or equal to 0.5"),
        (["stage=all", "finetune.learning_rate=nan"], "finite number"),
        (["stage=all", "finetune.learning_rate=1e99"], "less than or equal to 1"),
        (["stage=pretrain"], "stage=pretrain was removed: run `python -m tools.pretrain OUT`"),
        (["stage=all", "pretrain.steps=3"], "pretrain.steps was removed with stage=pretrain: run"),
        (["stage=all", "model.path="], "model.path='': give a path; . is the working folder"),
        (["stage=all", "data.folder=''"], "data.folder='': give a path"),
        (["stage=all", "data.train=train.jsonl"], "give a list: data.train=[train.jsonl]"),
        (["stage=all", "verbose"], "'verbose' is not of the form key=value"),
        (["--quiet", "stage=all"], "'--quiet' is not of the form key=value"),
        (["stage=all", "model=local"], "model.name"),
        (["--params"], "--params needs"),
        (["--params", "nowhere.yaml", "stage=all"], "nowhere.yaml cannot be read"),
        (
            ["--params", "params.yaml", "stage=all", "seed=3"],
            "seed=3 cannot be set beside --params",
        ),
        (["stage=all", "seed=["], "seed=[ cannot be read: put quotes around its texts"),
        (["stage=all", "data.train=[a,'é b]"], "data.train=[a,'é b] cannot be read"),
        (["stage=all", "data.train=[[a,é]]"], "data.train=[[a,é]] cannot be read"),
        (["stage=all", "größe=3"], "größe is not a setting"),
        (["stage=all", "seed=("], "seed='(': Input should be a valid integer"),
        (["stage=all", "data.train=a,b"], 'data.train=a,b holds a comma: write "data.train=[a,b]"'),
    ],
)
def test_refusals_name_the_field_and_what_is_allowed(arguments, said):
    assert said in refusal(*arguments)


@pytest.mark.parametrize(
    "value",
    [
        "/tmp/spacé dir 日本",
        "/it's",
        'a"b',
        "a&b;c#d",
        "test [1](2)",
        "é\\",
        "a=b",
        "/plain",
        "'/é'",
    ],
)
def test_values_are_taken_as_they_are_typed(value):
    assert compose.compose([f"data.folder={value}"])["data"]["folder"] == value.strip("'")


def test_lists_take_such_values_too_and_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    tree = compose.compose(["data.train=[é.jsonl, test [1].jsonl,b]", "data.folder=~/chats"])
    assert tree["data"]["train"] == ["é.jsonl", "test [1].jsonl", "b"]
    assert tree["data"]["folder"] == "/home/ann/chats"


def test_params_file_gives_the_same_as_the_command_line(tmp_path):
    tree = compose.compose(["quantize=int8_sq", "seed=7"])
    (tmp_path / "params.yaml").write_text(compose.to_yaml(tree))
    arguments = ["--params", str(tmp_path / "params.yaml"), "stage=quantize"]
    assert compose.from_command_line(arguments) == ("quantize", tree, load(tree))


def test_help_lists_every_setting():
    def names(tree):
        return {key: names(value) if isinstance(value, dict) else 0 for key, value in tree.items()}

    listed = help_text().split("\nSettings", 1)[1].split("\n", 1)[1].split("\nExamples", 1)[0]
    # Not the demo, whose gate has conditions of its own.
    plain = ["model=local", "model.name=m", "model.path=data/base_model"]
    assert names(yaml.safe_load(listed)) == names(compose.compose(plain))


def test_nothing_heavy_is_imported_to_refuse_or_help():
    blocked = "torch transformers nemo megatron modelopt mlflow onnxruntime dvc lightning".split()
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from pipeline.__main__ import main\n"
        "codes = [main(['--help']), main(['stage=nothing']), main(['stage=config'])]\n"
        "sys.exit(0 if codes == [0, 2, 0] else 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Stages\n  prepare" in done.stdout


def test_help_needs_neither_the_schema_nor_yaml():
    """It answers in a tenth of a second; pydantic alone takes twice that."""
    code = (
        "import sys\n"
        "for name in ('pydantic', 'yaml', 'rich', 'hydra'): sys.modules[name] = None\n"
        "from pipeline.__main__ import main\n"
        "sys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argument", ["--help", "stage=config"])
def test_output_that_nobody_reads_is_no_failure_to_report(argument: str, unbuffered: str):
    """As of `… | head`, which has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", argument],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
