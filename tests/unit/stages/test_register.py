"""The request for the registry is complete, comparable and readable."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import compose
from pipeline.errors import ArtifactError
from pipeline.stages import register
from tests.made_artifacts import ACCURACY, make_chain

INPUTS = ("merge", "quantize", "evaluate", "export", "build", "benchmark")


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
    request, card, _ = run(tmp_path, "quantize=none", accuracy={"tuned": 0.93, "none": 0.93})
    assert request["exact_match"] == 0.93
    assert "shipped as **unquantized**" in card
    assert "| **none** | **93.0%** |" in card


def test_a_refused_model_is_registered_with_the_reason(tmp_path: Path) -> None:
    request, card, outcome = run(tmp_path, failure="fp8 lost 9 points")
    assert request["gate_passed"] is False
    assert request["gate_reason"] == "fp8 lost 9 points"
    assert request["tags"]["gate"] == "failed"
    assert outcome.metrics["gate_passed"] == 0.0
    assert "Gate: **failed (fp8 lost 9 points)**" in card


def test_a_format_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no figures of int4_awq, only of base, tuned"):
        run(tmp_path, "quantize=int4_awq", accuracy={"base": 0.0, "tuned": 0.9})
