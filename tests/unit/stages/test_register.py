"""The request for the registry is complete, comparable and readable."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.orchestration import compose
from pipeline.stages import register
from tests.made_artifacts import ACCURACY, make_artifact, make_chain

INPUTS = "prepare finetune merge quantize evaluate export build benchmark".split()


def run(tmp_path: Path, *overrides: str, **chain: Any) -> tuple[dict[str, Any], str, Any]:
    """The request, the card and the outcome of a run over a made-up chain."""
    made = make_chain(tmp_path / "artifacts", **chain)
    config = compose.from_command_line(["stage=register", *overrides])[2]
    outcome = register.run(config, {stage: made[stage] for stage in INPUTS}, tmp_path)
    request = json.loads((tmp_path / register.REQUEST).read_text())
    assert request["tags"]["digest.build"] == made["build"].manifest.digest
    assert request["tags"]["dataset"] == made["prepare"].manifest.digest
    return request, (tmp_path / register.CARD).read_text(), outcome


def test_the_request_names_what_is_shipped_and_where_it_is(tmp_path: Path) -> None:
    request, card, outcome = run(tmp_path, "register.name=bank")
    assert request["name"] == "bank"
    assert request["exact_match"] == ACCURACY["fp8"]
    assert request["gate_passed"] is True
    assert request["tags"]["gate"] == "passed"
    assert request["metrics"]["exact_match/base"] == ACCURACY["base"]
    assert request["metrics"]["benchmark/tokens_per_second/at_4"] == 840
    assert set(request["artifacts"]) == set(INPUTS)
    assert request["artifacts"]["build"]["path"] == str(tmp_path / "artifacts" / "build")
    assert outcome.kind == "registration"
    assert outcome.metrics == {"exact_match": ACCURACY["fp8"], "gate_passed": 1.0}
    assert "| **fp8** | **92.0%** | 90.0% to 94.0% |" in card
    assert "Gate: **passed**" in card


def test_without_quantization_the_card_says_so(tmp_path: Path) -> None:
    request, card, _ = run(tmp_path, format="none", accuracy={"tuned": 0.93, "none": 0.93})
    assert request["exact_match"] == 0.93
    assert "shipped as **unquantized**" in card
    assert "| **none** | **93.0%** |" in card


def test_the_score_that_versions_are_compared_by_is_whole(tmp_path: Path) -> None:
    request, _, _ = run(tmp_path, accuracy={"tuned": 0.9, "fp8": 197 / 225})
    assert float(request["tags"]["exact_match"]) == request["exact_match"] == 197 / 225


def test_a_refused_model_is_registered_with_the_reason(tmp_path: Path) -> None:
    request, card, outcome = run(tmp_path, failure="fp8 lost 9 points")
    assert request["gate_passed"] is False
    assert request["gate_reason"] == "fp8 lost 9 points"
    assert request["tags"]["gate"] == "failed"
    assert outcome.metrics["gate_passed"] == 0.0
    assert "Gate: **failed (fp8 lost 9 points)**" in card


def test_what_was_exported_and_trained_is_registered_whatever_the_settings_say_now(
    tmp_path: Path,
) -> None:
    now = ["quantize=int4_awq", "seed=9", "model.name=other", "data.folder=data/other"]
    now += ["finetune.method=sft", "finetune.max_steps=900", "finetune.learning_rate=0.1"]
    request, card, _ = run(tmp_path, *now, "register.name=bank", format="int8_sq")
    assert request["exact_match"] == ACCURACY["int8_sq"]
    assert request["tags"]["format"] == "int8_sq"
    trained = {"base": "harbor-base", "method": "dora", "format": "int8_sq", "seed": "3"}
    assert request["params"] == trained
    assert (
        "harbor-base tuned by DoRA on data/harbor, shipped as **INT8 SmoothQuant** (`int8_sq`)"
        in card
    )
    assert "7 steps of 16 conversations, learning rate 0.002, seed 3" in card
    assert "| **int8_sq** | **91.5%** |" in card


@pytest.mark.parametrize(
    ("again", "stale"), [("prepare", "finetune"), ("quantize", "evaluate"), ("export", "build")]
)
def test_figures_of_other_weights_are_refused(tmp_path: Path, again: str, stale: str) -> None:
    """A stage was run alone since, and what reads it was not."""
    made = make_chain(tmp_path)
    made[again] = make_artifact(tmp_path, again, made[again].kind, files={"data.txt": "others"})
    config = compose.from_command_line(["stage=register"])[2]
    said = rf"{stale} was made from another {again} than .*: run .* stage={stale}` again"
    with pytest.raises(ArtifactError, match=said):
        register.run(config, {stage: made[stage] for stage in INPUTS}, tmp_path)


@pytest.mark.parametrize("name", ["support-3.1", "org/support", "it's", "a:b"])
def test_a_name_that_mlflow_refuses_is_refused_before_anything_runs(name: str) -> None:
    mended = re.sub(r"[/.':]", "-", name)
    with pytest.raises(ConfigError, match=f"set register.name={mended}$"):
        compose.from_command_line(["stage=all", f'register.name="{name}"'])


def test_a_models_name_is_spelled_as_mlflow_takes_it() -> None:
    config = compose.from_command_line(["stage=all", "model.name=llama-3.1-8b"])[2]
    assert (config.model.name, config.register_.name) == ("llama-3.1-8b", "llama-3-1-8b")
