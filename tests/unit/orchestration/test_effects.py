"""All settings and all stages: which stage reads which, and beside which other settings."""

import re

import pytest
import yaml

from pipeline.config.defaults import default_config
from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.core.paths import ROOT
from pipeline.orchestration import compose, environment
from pipeline.orchestration.effects import (
    CONDITIONS,
    GRAPH,
    READERS,
    WHOLE,
    check_conditions,
    entry_of,
    is_below,
    is_read,
    readers,
)
from pipeline.orchestration.environment import VARIABLES, check_environment
from pipeline.orchestration.graph import OUTSIDE, declared_stages
from pipeline.orchestration.lineage import OUTSIDE_INPUTS
from tests.unit.config.schema_walk import leaves

KEYS = sorted({leaf.name for leaf in leaves(Config)})
DECLARED = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_the_stages_are_those_of_the_graph_and_beside_it() -> None:
    assert tuple(declared_stages()) == GRAPH
    known = {*GRAPH, *WHOLE, *OUTSIDE}
    assert {stage for stages in READERS.values() for stage in stages} <= known
    assert set(OUTSIDE_INPUTS) <= set(OUTSIDE)


def test_every_setting_has_a_reader() -> None:
    assert [key for key in KEYS if readers(key) == ("config",)] == []
    assert all(is_read("config", key) for key in KEYS)


def test_every_entry_is_of_a_setting() -> None:
    for name in READERS:
        assert any(is_below(key, name) for key in KEYS), name
    with pytest.raises(KeyError):
        entry_of("nothing")


@pytest.mark.parametrize("stage", GRAPH)
def test_what_a_stage_reads_is_part_of_its_fingerprint(stage: str) -> None:
    """But for what decides where and how it runs, and what requests call the model."""
    sections = DECLARED[stage]["params"]
    elsewhere = ("artifacts", "launcher", "tracking", "verify")
    read = [key for key in KEYS if is_read(stage, key) and key.split(".")[0] not in elsewhere]
    missing = [key for key in read if not any(is_below(key, section) for section in sections)]
    assert missing == (["model.name"] if stage == "benchmark" else [])


def test_what_a_stage_runs_only_for_the_whole_graph() -> None:
    for stage in WHOLE:
        assert is_read(stage, "finetune.max_steps")
        assert not is_read(stage, "serve.port")
    assert is_read("plan", "plan.gpu")
    assert not is_read("all", "plan.gpu")
    assert is_read("retrain", "retrain.min_new")
    assert is_read("retrain", "serve.record")


# For each condition: a setting that has no effect, and what stands beside it; and one that has.
CASES = [
    *(
        (f"finetune.preference.{name}", f"finetune.preference.{name}",
         {"finetune.objective": idle}, {"finetune.objective": working})
        for name, idle, working in (
            ("beta", "orpo", "kto"), ("label_smoothing", "kto", "dpo"),
            ("desirable_weight", "dpo", "kto"), ("undesirable_weight", "sft", "kto"),
            ("gamma", "dpo", "simpo"), ("odds_weight", "sft", "orpo"),
        )
    ),
    ("prepare.ray_address", "prepare.ray_address", {}, {"prepare.engine": "ray"}),
    ("finetune.adapter", "finetune.adapter.rank", {"finetune": "sft"}, {"finetune": "dora"}),
    ("finetune.micro_batch_size", "finetune.micro_batch_size", {"finetune.pack_length": 512}, {}),
    ("finetune.warmup_share", "finetune.warmup_share", {}, {"finetune.warmup_steps": None}),
    ("finetune.decay_share", "finetune.decay_share", {}, {"finetune.schedule": "wsd"}),
    ("finetune.min_learning_rate", "finetune.min_learning_rate",
     {"finetune.schedule": "constant"}, {}),
    ("finetune.early_stopping.min_improvement", "finetune.early_stopping.min_improvement", {},
     {"finetune.early_stopping.patience": 2}),
    ("quantize.calibration", "quantize.calibration.rows", {"quantize": "none"}, {}),
    ("quantize.exclude", "quantize.exclude", {"quantize": "none"}, {}),
    ("evaluate.json_schema", "evaluate.json_schema", {},
     {"evaluate.metrics": ["json_schema"], "evaluate.json_schema": "s.json", "evaluate.gate": {}}),
    ("evaluate.pattern", "evaluate.pattern", {},
     {"evaluate.metrics": ["exact_match", "pattern"], "evaluate.pattern": "a+"}),
    ("evaluate.refusal_pattern", "evaluate.refusal_pattern", {},
     {"evaluate.metrics": ["exact_match", "refusal_rate"]}),
    ("evaluate.embedder", "evaluate.embedder", {},
     {"evaluate.metrics": ["exact_match", "embedding_similarity"], "evaluate.embedder": "e"}),
    ("evaluate.general_text", "evaluate.general_text", {},
     {"evaluate.metrics": ["exact_match", "general_perplexity"], "evaluate.general_text": "t"}),
    ("evaluate.judge", "evaluate.judge.endpoint.timeout", {},
     {"evaluate.metrics": ["exact_match", "judge_wins"]}),
    ("evaluate.judge.rubric", "evaluate.judge.rubric",
     {"evaluate.metrics": ["exact_match", "judge_wins"]},
     {"evaluate.metrics": ["exact_match", "judge_score"]}),
    ("evaluate.benchmark_tasks", "evaluate.benchmark_tasks", {},
     {"evaluate.benchmarks": ["gsm8k"]}),
    ("evaluate.benchmark_limit", "evaluate.benchmark_limit", {},
     {"evaluate.benchmarks": ["gsm8k"]}),
    ("engine.precision", "engine.precision", {"engine": "vllm"}, {"engine": "onnxruntime"}),
    ("engine.lora_rank", "engine.lora_rank", {"engine": "onnxruntime"}, {"engine": "hf"}),
    ("engine.speculative", "engine.speculative",
     {"engine": "vllm", "engine.speculative": "prompt_lookup"},
     {"engine": "hf", "engine.speculative": "prompt_lookup"}),
    ("engine.speculative_tokens", "engine.speculative_tokens", {},
     {"engine.speculative": "prompt_lookup"}),
    ("engine.arguments", "engine.arguments.x", {"engine": "hf"}, {"engine": "trtllm"}),
    ("serve.adapters_seconds", "serve.adapters_seconds", {}, {"serve.adapters": "loras"}),
    ("serve.follow_seconds", "serve.follow_seconds", {}, {"serve.follow": "champion"}),
    *((f"canary.haproxy.{name}", f"canary.haproxy.{name}", {}, {"canary.haproxy.socket": "/x"})
      for name in ("backend", "candidate")),
    *((f"canary.http_route.{name}", f"canary.http_route.{name}", {},
       {"canary.http_route.name": "x"}) for name in ("namespace", "stable", "candidate")),
    ("plan.gpus_per_node", "plan.gpus_per_node", {}, {"plan.gpu": "h100"}),
    ("retrain.schedule", "retrain.schedule", {"retrain.schedule": "@daily"},
     {"launcher": "kubernetes", "launcher.container_image": "i", "launcher.claim": "c"}),
    ("retrain.every", "retrain.every",
     {"launcher": "kubernetes", "launcher.container_image": "i", "launcher.claim": "c",
      "retrain.every": 9, "retrain.schedule": "@daily"}, {"retrain.every": 9}),
    ("tracking.uri", "tracking.uri", {"tracking.enabled": False}, {}),
    ("tracking.experiment", "tracking.experiment", {"tracking.enabled": False}, {}),
    ("tracking.upload_weights", "tracking.upload_weights", {"tracking.enabled": False}, {}),
]  # fmt: skip


def test_every_condition_is_tried() -> None:
    assert {condition.key for condition in CONDITIONS} == {case[0] for case in CASES}


@pytest.mark.parametrize(("section", "key", "idle", "working"), CASES)
def test_a_setting_without_an_effect_is_refused(
    section: str, key: str, idle: dict[str, object], working: dict[str, object]
) -> None:
    stage = next(stage for stage in (*GRAPH, *WHOLE, *OUTSIDE) if is_read(stage, key))
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}=x has no effect: ") as caught:
        check_conditions(stage, default_config(idle), {key: f"{key}=x"})
    assert "\n" not in str(caught.value)
    check_conditions(stage, default_config(working), {key: f"{key}=x"})


def test_a_candidate_that_runs_already_takes_no_settings_of_a_server() -> None:
    given = {"serve.max_queue": "serve.max_queue=1"}
    check_conditions("canary", default_config({}), given)
    elsewhere = default_config({"canary.candidate": "http://127.0.0.1:8001"})
    check_conditions("serve", elsewhere, given)
    with pytest.raises(ConfigError, match="runs with settings of its own"):
        check_conditions("canary", elsewhere, given)


def test_an_environment_variable_that_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, key in (("MLFLOW_TRACKING_URI", "uri"), ("MLFLOW_EXPERIMENT_NAME", "experiment")):
        monkeypatch.setenv(variable, "http://one")
        config = default_config({f"tracking.{key}": "http://other"})
        with pytest.raises(ConfigError, match=f"{variable} comes first"):
            check_conditions("all", config, {f"tracking.{key}": f"tracking.{key}=http://other"})
        same = default_config({f"tracking.{key}": "http://one"})
        check_conditions("all", same, {f"tracking.{key}": f"tracking.{key}=http://one"})


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("import", {"launcher": "torchrun", "launcher.nodes": 2}, "only finetune uses several"),
        ("build", {"engine": "hf", "engine.profile": "onnxruntime-int8-tp1-pp1"}, "is of engine="),
        ("build", {"engine.precision": "fp32", "engine.profile": "onnxruntime-int8-tp1-pp1"},
         "a precision of its own"),
    ],
)  # fmt: skip
def test_settings_that_contradict_one_another(
    stage: str, changes: dict[str, object], said: str
) -> None:
    given = {key: f"{key}={value}" for key, value in changes.items() if "." in key}
    with pytest.raises(ConfigError, match=said):
        check_conditions(stage, default_config(changes), given)


def test_experiments_are_not_held_to_conditions() -> None:
    """They are meant for several stages: packs, and a micro-batch for those who leave them."""
    overrides = ["experiment=llama3_8b", "model.path=data/base_model"]
    assert compose.from_command_line(["stage=config", *overrides])


def test_variables_of_the_environment_are_read_or_refused() -> None:
    config = default_config()
    refused = [v.name for v in VARIABLES if v.state == "refused"]
    assert refused == ["MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"]
    for name in refused:
        with pytest.raises(ConfigError, match=f"{name} is not read: .* or set tracking.enabled="):
            check_environment(config, {name: "7"})
        check_environment(config, {name: ""})
        check_environment(default_config({"tracking.enabled": False}), {name: "7"})


def test_variables_that_this_program_reads_are_in_the_table() -> None:
    """Every name in upper case that the source looks up in the environment."""
    listed = " ".join(variable.name for variable in VARIABLES)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SERVE_API_KEY",
                 "REMOTE_API_KEY", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):  # fmt: skip
        assert name in listed
        used = [f for f in (ROOT / "pipeline").rglob("*.py") if f'"{name}"' in f.read_text()]
        assert [f for f in used if f.name != "environment.py"] or name == environment.EXPERIMENT
