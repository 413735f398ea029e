"""The request for the registry is complete, comparable and readable."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.engines.registered import Champion
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
    assert request["exact_match"] == 0.9  # of the engine as it is served, not of simulated fp8
    assert request["tags"]["measured"] == "served by onnxruntime int8, temperature 0"
    assert request["params"]["precision"] == "int8"
    assert request["gate_passed"] is True
    assert request["tags"]["gate"] == "passed"
    assert request["metrics"]["exact_match/base"] == ACCURACY["base"]
    assert request["metrics"]["exact_match/fp8_simulated"] == ACCURACY["fp8"]
    assert request["metrics"]["exact_match/served"] == 0.9
    assert request["metrics"]["benchmark/tokens_per_second/at_4"] == 840
    assert set(request["artifacts"]) == set(INPUTS)
    assert request["artifacts"]["build"]["path"] == str(tmp_path / "artifacts" / "build")
    assert outcome.kind == "registration"
    assert outcome.metrics == {"exact_match": 0.9, "gate_passed": 1.0}
    assert "| fp8, simulated | 92.0% | 90.0% to 94.0% |" in card
    assert "| **served (onnxruntime int8, temperature 0)** | **90.0%** | 88.0% to 92.0% |" in card
    assert "Gate: **passed**" in card


def test_without_quantization_the_card_says_so(tmp_path: Path) -> None:
    _, card, _ = run(tmp_path, format="none", accuracy={"tuned": 0.93, "none": 0.93})
    assert "exported as **unquantized**" in card
    assert "| none | 93.0% |" in card


def test_the_score_that_versions_are_compared_by_is_whole(tmp_path: Path) -> None:
    request, _, _ = run(tmp_path, served=[1.0] * 197 + [0.0] * 28)
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
    assert request["tags"]["format"] == "int8_sq"
    trained = {"base": "harbor-base", "method": "dora", "format": "int8_sq", "seed": "3"}
    trained |= {"engine": "onnxruntime", "precision": "int8", "sampling": '{"temperature": 0.0}'}
    assert request["params"] == trained
    assert request["tags"]["trained"] == "harbor-base by dora on data/harbor (900 rows)"
    assert (
        "harbor-base tuned by DoRA on data/harbor, exported as **INT8 SmoothQuant** (`int8_sq`)"
        in card
    )
    assert "7 steps of 16 rows = 0.12 epochs of 900 rows, learning rate 0.002" in card
    assert "| int8_sq, simulated | 91.5% |" in card


def test_a_refused_engine_is_registered_with_the_reason(tmp_path: Path) -> None:
    made = make_chain(tmp_path / "artifacts")
    content = {"files": {f.name: f.read_bytes() for f in made["benchmark"].path.iterdir()}}
    content["files"].pop("manifest.json")
    made["benchmark"] = make_artifact(
        tmp_path / "other", "benchmark", "benchmark", failure="the engine lost 5 points", **content
    )
    config = compose.from_command_line(["stage=register"])[2]
    register.run(config, {stage: made[stage] for stage in INPUTS}, tmp_path)
    request = json.loads((tmp_path / register.REQUEST).read_text())
    assert request["gate_reason"] == "the engine lost 5 points"


class TestComparison:
    """With a champion that answered 100 of 130 questions right."""

    champion = Champion(
        3,
        "e" * 64,
        {"exact_match": {f"question {i}": float(i < 100) for i in range(130)}},
    )

    def compare(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, champion: Champion | None,
        *settings: str, **chain: Any,
    ) -> dict[str, Any]:  # fmt: skip
        monkeypatch.setattr(register, "champion_of", lambda config: champion)
        request, _, outcome = run(
            tmp_path, f"artifacts={tmp_path / 'artifacts'}", *settings, **chain
        )
        (rule,) = request["rules"]
        assert outcome.proof["comparisons"] == {"exact_match": rule["comparison"]}
        assert (rule["name"], rule["key"], rule["by"]) == ("champion", "exact_match", "interval")
        return rule["comparison"]

    def test_both_figures_the_pairs_the_interval_and_the_decision_are_recorded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.compare(tmp_path, monkeypatch, self.champion)
        assert (found["champion"], found["margin"]) == (3, 0.03)
        assert found["scores"] == "registered with it"
        assert found["becomes_champion"] is True
        result = found["result"]
        assert (result["questions"], result["better"], result["worse"]) == (130, 17, 0)
        assert (result["ours"], result["theirs"]) == (0.9, 100 / 130)
        assert result["low"] < result["difference"] < result["high"]

    def test_without_a_champion_there_is_nothing_to_compare(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.compare(tmp_path, monkeypatch, None)
        assert found["reason"] == "there is no champion"
        assert found["result"] is None

    def test_a_champion_with_other_questions_is_asked_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = {f"question {number}": 1.0 for number in range(500, 630)}
        monkeypatch.setattr(register, "_ask", lambda *_: {"exact_match": asked})
        found = self.compare(tmp_path, monkeypatch, self.champion, first_question=500)
        assert found["scores"] == "its engine was asked again"
        assert (found["result"]["questions"], found["result"]["worse"]) == (130, 13)
        assert found["becomes_champion"] is False

    def test_a_champion_that_is_not_at_hand_is_compared_on_shared_questions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.compare(tmp_path, monkeypatch, self.champion, first_question=90)
        assert found["result"]["questions"] == 40
        assert "engine eeeeeeeeeeee is not in" in found["reason"]
        other = tmp_path / "other"
        other.mkdir()
        found = self.compare(other, monkeypatch, self.champion, first_question=500)
        assert found["result"] is None
        assert "cannot be asked these questions" in found["reason"]


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
