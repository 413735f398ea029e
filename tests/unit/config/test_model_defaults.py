"""Defaults that follow from the model's config.json, for models from 135 M to 70 B parameters."""

import json
from pathlib import Path

import pytest

from pipeline.config.defaults import default_config
from pipeline.config.model_defaults import rate
from pipeline.config.schema import Config
from pipeline.orchestration import compose

# Hidden size and positions as in each model's config.json.
MODELS = {
    "bundled": (256, 512),
    "SmolLM2-135M": (576, 8192),
    "Qwen2.5-0.5B": (896, 32_768),
    "Llama-3.2-1B": (2048, 131_072),
    "Llama-3.1-8B": (4096, 131_072),
    "Qwen2.5-32B": (5120, 131_072),
    "Llama-3.1-70B": (8192, 131_072),
}


def composed(folder: Path, content: object, **changes: object) -> Config:
    (folder / "config.json").write_text(json.dumps(content))
    given = {"model": "local", "model.name": "x", "model.path": str(folder)}
    return default_config({**given, **changes})


@pytest.mark.parametrize(
    ("model", "lora", "sft"),
    [
        ("bundled", 5e-3, 2e-3),
        ("SmolLM2-135M", 5e-4, 1e-4),
        ("Qwen2.5-0.5B", 5e-4, 1e-4),
        ("Llama-3.2-1B", 2e-4, 2e-5),
        ("Llama-3.1-8B", 1e-4, 1e-5),
        ("Qwen2.5-32B", 1e-4, 1e-5),
        ("Llama-3.1-70B", 1e-4, 5e-6),
    ],
)
def test_learning_rates_by_size_and_method(
    tmp_path: Path, model: str, lora: float, sft: float
) -> None:
    hidden, positions = MODELS[model]
    content = {"hidden_size": hidden, "max_position_embeddings": positions}
    for method, wanted in {"lora": lora, "dora": lora, "sft": sft}.items():
        found = composed(tmp_path, content, finetune=method).finetune
        assert found.learning_rate == wanted
        fall = 20 if model == "bundled" else 10
        assert found.min_learning_rate == pytest.approx(wanted / fall)


@pytest.mark.parametrize(
    ("positions", "row", "prompt", "served", "answer"),
    [
        (131_072, 4096, 3072, 4096, 256),
        (4096, 4096, 3072, 4096, 256),
        (2048, 2048, 1536, 2048, 256),
        (512, 512, 384, 512, 128),
        (64, 64, 48, 64, 16),
    ],
)
def test_lengths_by_the_models_positions(
    tmp_path: Path, positions: int, row: int, prompt: int, served: int, answer: int
) -> None:
    config = composed(tmp_path, {"max_position_embeddings": positions})
    assert config.prepare.max_length == row
    assert (config.engine.max_input_len, config.engine.max_seq_len) == (prompt, served)
    assert config.evaluate.max_new_tokens == config.benchmark.max_tokens == answer


def test_what_is_given_decides_the_rest(tmp_path: Path) -> None:
    content = {"max_position_embeddings": 8192}
    config = composed(tmp_path, content, **{"engine.max_seq_len": 2048})
    assert (config.engine.max_input_len, config.engine.max_seq_len) == (1536, 2048)
    config = composed(tmp_path, content, **{"finetune.learning_rate": 1e-3})
    assert config.finetune.min_learning_rate == pytest.approx(1e-4)
    config = composed(tmp_path, content, **{"evaluate.max_new_tokens": 32})
    assert config.benchmark.max_tokens == 32


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"max_position_embeddings": true, "hidden_size": "x"}', "[" * 100_000],
)
def test_a_config_json_that_cannot_be_read_leaves_the_usual_values(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    given = {"model": "local", "model.name": "x", "model.path": str(tmp_path)}
    config = default_config(given)
    assert (config.prepare.max_length, config.finetune.learning_rate) == (4096, 1e-4)


def test_params_yaml_that_holds_null_is_filled_in(tmp_path: Path) -> None:
    """As `dvc exp run -S`, which composes by itself, writes it."""
    tree = compose.compose([])
    tree["engine"]["max_seq_len"] = tree["finetune"]["min_learning_rate"] = None
    (tmp_path / "params.yaml").write_text(compose.to_yaml(tree))
    command = ["--params", str(tmp_path / "params.yaml"), "stage=build"]
    _, filled, config = compose.from_command_line(command)
    assert config.engine.max_seq_len == filled["engine"]["max_seq_len"] == 512
    assert config.finetune.min_learning_rate == pytest.approx(2.5e-4)


@pytest.mark.parametrize(
    ("objective", "share"), [("dpo", 0.05), ("kto", 0.05), ("simpo", 0.05), ("orpo", 0.5)]
)
def test_a_preference_objective_has_a_share_of_the_rate_and_two_epochs(
    tmp_path: Path, objective: str, share: float
) -> None:
    content = {"hidden_size": 4096}
    found = composed(tmp_path, content, **{"finetune.objective": objective}).finetune
    assert found.learning_rate == pytest.approx(1e-4 * share)
    assert (found.max_steps, found.epochs) == (None, 2)
    given = {"finetune.objective": objective, "finetune.max_steps": 7}
    assert composed(tmp_path, content, **given).finetune.epochs is None


@pytest.mark.parametrize(
    ("method", "objective", "rate_", "steps"),
    [
        ("lora", "sft", 5e-3, 170),
        ("sft", "sft", 2e-3, 150),
        ("lora", "dpo", 2.5e-4, None),
        ("dora", "kto", 2.5e-4, None),
        ("sft", "orpo", 1e-3, None),
    ],
)
def test_the_demo_has_steps_of_its_own_for_supervised_fine_tuning_alone(
    method: str, objective: str, rate_: float, steps: int | None
) -> None:
    demo = default_config({"finetune": method, "finetune.objective": objective}).finetune
    assert demo.learning_rate == pytest.approx(rate_)
    supervised = (steps, None, 20, 32, 32)
    expected = supervised if steps else (None, 2, None, 8, 8)  # for some 70 pairs
    assert expected == (
        demo.max_steps, demo.epochs, demo.warmup_steps, demo.global_batch_size,
        demo.micro_batch_size,
    )  # fmt: skip


def test_the_rate_without_a_size_is_that_of_7_b() -> None:
    assert rate("lora", None) == rate("lora", 4096)
