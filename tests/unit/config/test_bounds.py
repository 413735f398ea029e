"""Every number of the schema has both bounds, and is no true or false; texts are plain."""

import copy
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from pipeline.config.defaults import default_tree
from pipeline.config.launcher import KubernetesLauncher, SlurmLauncher
from pipeline.config.retrain import RetrainConfig
from pipeline.config.schema import Config, load
from pipeline.core.errors import ConfigError, short, shown
from tests.unit.config.schema_walk import Leaf, leaves

TREE = default_tree()
LEAVES = list(leaves(Config))
NUMBERS = [leaf for leaf in LEAVES if leaf.numbers]
ALONE = [leaf for leaf in NUMBERS if leaf.is_number and not leaf.name.startswith("launcher.")]


def config_with(changes: Mapping[str, object]) -> Config:
    """The default configuration with values by dotted name, composed once."""
    tree = copy.deepcopy(TREE)
    for name, value in changes.items():
        *sections, key = name.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = value
    return load(tree)


def test_the_whole_schema_is_walked() -> None:
    names = {leaf.name for leaf in NUMBERS}
    assert {"seed", "finetune.learning_rate", "benchmark.concurrency", "retrain.every"} <= names
    assert {"launcher.nodes", "serve.version", "prepare.samples"} <= names


@pytest.mark.parametrize("leaf", NUMBERS, ids=lambda leaf: leaf.name)
def test_every_number_has_both_bounds(leaf: Leaf) -> None:
    for schema in leaf.numbers:
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), leaf.name
        assert {"maximum", "exclusiveMaximum"} & schema.keys(), leaf.name


@pytest.mark.parametrize("leaf", ALONE, ids=lambda leaf: leaf.name)
def test_what_is_no_number_within_the_bounds_is_refused(leaf: Leaf) -> None:
    for value in (True, False, 1e26, -1e26, "nan", [1]):
        with pytest.raises(ConfigError, match=leaf.name.replace(".", r"\.")) as caught:
            config_with({leaf.name: value})
        assert "\n" not in str(caught.value)


def test_true_in_a_list_or_a_mapping_is_no_number() -> None:
    for name, value in {
        "benchmark.concurrency": [True],
        "evaluate.gate.served.margin": True,
    }.items():
        with pytest.raises(ConfigError, match="not true or false"):
            config_with({name: value})
    assert config_with({"engine.arguments.enforce_eager": True}).engine.arguments


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "\x1b[31m", "\udcff"])
@pytest.mark.parametrize("name", ["model.path", "tracking.experiment", "data.folder"])
def test_control_characters_are_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match="control character"):
        config_with({name: text})


def test_a_list_holds_no_control_characters_and_an_engines_argument_may_have_lines() -> None:
    with pytest.raises(ConfigError, match="control character"):
        config_with({"data.train": ["a\0"]})
    assert config_with({"engine.arguments.x": "two\nlines"}).engine.arguments["x"] == "two\nlines"


@pytest.mark.parametrize(
    "schedule",
    ["0 3 * * *", "*/15 0-6,22 1,15 jan-mar MON-fri", "@daily", "59 23 31 12 7", "0 0 ? * sun"],
)
def test_schedules_of_cron(schedule: str) -> None:
    assert retrain(schedule).schedule == schedule


@pytest.mark.parametrize(
    "schedule",
    ["99 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "@never", "* * * *",
     "*/0 * * * *", "5-1 * * * *", "a * * * *", "* * * foo *", "*  * * * *", "１ * * * *", ""],
)  # fmt: skip
def test_what_cron_does_not_take(schedule: str) -> None:
    with pytest.raises(ValidationError):
        retrain(schedule)


def retrain(schedule: str) -> RetrainConfig:
    return RetrainConfig(recordings=None, min_new=1, every=None, schedule=schedule)


@pytest.mark.parametrize("time", ["30", "04:00:00", "90:30", "2-12", "1-12:30:00"])
def test_times_of_slurm(time: str) -> None:
    assert slurm(time).time == time


@pytest.mark.parametrize("time", ["banana", "", "4h", "99:99", "-1", "1-"])
def test_what_slurm_does_not_take(time: str) -> None:
    with pytest.raises(ValidationError, match="give minutes, hours"):
        slurm(time)


def slurm(time: str) -> SlurmLauncher:
    return SlurmLauncher.model_validate(
        {"name": "slurm", "nodes": 1, "dry_run": True, "account": "a", "partition": "p",
         "time": time, "container_image": "i", "container_mounts": [], "job_folder": "/j",
         "gpus": None, "setup": [], "options": [], "retries": 3, "wait": False}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("shared_memory", "many"), ("claim", "Two Words"), ("namespace", "-x"), ("mount", "here")],
)
def test_what_kubernetes_does_not_take(name: str, value: str) -> None:
    good = {"name": "kubernetes", "nodes": 1, "dry_run": True, "namespace": "default"}
    good |= {"container_image": "i", "claim": "c", "mount": "/m", "shared_memory": "64Gi"}
    good |= {"kind": "job", "runtime": "r", "retries": 3, "gpus": None, "service_account": None}
    lists = ("env", "secrets", "pull_secrets", "requests", "node_selector", "tolerations")
    good |= dict.fromkeys(lists, ())
    assert KubernetesLauncher.model_validate(good)
    with pytest.raises(ValidationError, match=f"{name}\n.*give "):
        KubernetesLauncher.model_validate({**good, name: value})


@pytest.mark.parametrize("uri", ["htp:/x", "http://", "sqlite:/x", "nowhere"])
def test_what_is_no_store_of_mlflow_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri=.*sqlite:////"):
        config_with({"tracking.uri": uri})


@pytest.mark.parametrize(
    "uri", ["http://h:5000", "https://u:p@h", "sqlite:////x.db", "postgresql+psycopg2://h/d", "/x"]
)
def test_stores_of_mlflow(uri: str) -> None:
    assert config_with({"tracking.uri": uri}).tracking.uri == uri


def test_values_in_messages_are_short() -> None:
    with pytest.raises(ConfigError) as caught:
        config_with({"seed": "x" * 100_000, "plan.gpu": "y" * 100_000, "data.train": "z" * 9_999})
    assert len(str(caught.value)) < 700
    assert "(100,000 characters)" in str(caught.value)
    assert shown(10**5000) == "a number of more than 4,300 digits"
    assert (shown(True), shown(None), short("a b"), short("a\nb")) == (
        "true",
        "null",
        "a b",
        "'a\\nb'",
    )


def test_a_message_names_a_few_of_many_wrong_fields() -> None:
    wrong = {f"serve.{name}": -1 for name in ("port", "max_queue", "drain_delay", "max_body_bytes")}
    with pytest.raises(ConfigError, match=r"; and 2 more$"):
        config_with({**wrong, "seed": -1, "prepare.samples": -1})


def test_the_precisions_of_an_engine_are_those_of_its_record() -> None:
    with pytest.raises(ConfigError, match=r"engine\.precision='int2'.*auto, int8, fp32, int4"):
        config_with({"engine.precision": "int2"})
