"""The defaults from Python: the same as Hydra composes for the command line, without Hydra."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.defaults import default_config, default_tree
from pipeline.config.schema import load
from pipeline.core.errors import ConfigError
from pipeline.core.paths import CONF, ROOT
from pipeline.orchestration.compose import compose

OPTIONS = [
    (group.name, option.stem)
    for group in sorted(p for p in CONF.iterdir() if p.is_dir())
    for option in sorted(group.glob("*.yaml"))
]


def asked(group: str, option: str) -> dict[str, str | list[str]]:
    """Values that an option asks for with ???."""
    names = re.findall(r"^(\w+): \?\?\?", (CONF / group / f"{option}.yaml").read_text(), re.M)
    given: dict[str, str | list[str]] = {
        f"{group}.{name}": ["a"] if name in ("train", "test") else "x" for name in names
    }
    if (group, option) == ("data", "files"):
        given["data.test"] = ["a"]  # or data.test_share
    if group == "experiment":
        given["model.path"] = "/m"
    if option == "remote":
        given["engine.arguments.base_url"] = "http://h/v1"
    return given


def words(changes: dict[str, str | list[str]]) -> list[str]:
    """The same for the command line."""
    return [
        f"{name}=[{','.join(value)}]" if isinstance(value, list) else f"{name}={value}"
        for name, value in changes.items()
    ]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_gives_what_hydra_composes(group: str, option: str) -> None:
    changes = {group: option, **asked(group, option)}
    assert default_tree(changes) == compose(words(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"finetune": "sft", "quantize": "int4_awq", "finetune.max_steps": "5"},
        {"model": "local", "model.name": "x", "model.path": "/m", "finetune": "sft"},
        {"experiment": "llama3_8b", "finetune": "sft", "model.path": "/m"},
        {"experiment": "llama3_8b_sft", "model": "bundled"},
        {"experiment": "llama3_70b", "model.path": "/m", "finetune.learning_rate": "1e-3"},
        {"finetune": "dora", "finetune.objective": "kto"},
    ],
)
def test_several_changes_at_once_give_what_hydra_composes(changes: dict[str, str]) -> None:
    assert load(default_tree(changes)) == load(compose(words(changes)))


def test_values_of_python_are_taken_as_they_are(tmp_path: Path) -> None:
    changes = {"artifacts": tmp_path, "quantize.compare": ["int8_sq"], "finetune.max_steps": 5}
    config = default_config(changes)
    assert (config.artifacts, config.finetune.max_steps) == (tmp_path, 5)
    assert config.quantize.compare == ("int8_sq",)
    assert config.register_.name == config.model.name


def test_a_strangers_model_inherits_nothing_of_the_demo() -> None:
    demo = default_config()
    plain = default_config({"model": "local", "model.name": "x", "model.path": "/m"})
    assert demo.finetune.learning_rate == 5e-3
    assert plain.finetune.learning_rate == 1e-4
    assert (plain.finetune.adapter.rank, plain.prepare.max_length) == (16, 4096)
    assert "learned" not in plain.evaluate.gate
    assert plain.quantize.compare == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "local"}, r"model\.name is not set"),
        ({"finetune": "lorra"}, "finetune=lorra does not exist: choose from dora, lora, sft"),
        ({"finetune.max_step": 5}, r"finetune\.max_step is not a setting"),
        ({"finetune.max_steps": 0}, r"finetune\.max_steps=0: .*greater than or equal to 1"),
        ({"launcher": "slurm", "model.name": "${nothing}"}, "is not set"),
        ({"model.name": "${nothing}"}, "nothing"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        default_config(changes)
    assert "\n" not in str(caught.value)


def test_hydra_is_not_imported() -> None:
    code = (
        "import sys; sys.modules['hydra'] = None\n"
        "from pipeline.config.defaults import default_config\n"
        "assert default_config().finetune.method == 'lora'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
