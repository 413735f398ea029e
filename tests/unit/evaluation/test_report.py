import json
from pathlib import Path

from pipeline.evaluation.confidence import Estimate
from pipeline.evaluation.gate import Verdict
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.report import build, forgotten, main_metric, markdown, write

NAMES = ("exact_match", "token_f1", "answer_loss", "perplexity")


def figures(value: float) -> dict[str, Estimate]:
    return {name: Estimate(value, value - 0.01, value + 0.01) for name in NAMES}


PART = {"kind": "tag", "name": "cards", "questions": 25}
REPORT = build(
    {name: METRICS[name] for name in NAMES},
    "exact_match",
    {"base": figures(0.02), "tuned": figures(0.93), "fp8": figures(0.9)},
    {"base": Estimate(-0.91, -0.95, -0.87)},
    [Verdict("format", False, "fp8 answers too little"), Verdict("learned", True, "enough")],
    ["int4_awq answers less"],
    questions=225,
    method="adapter",
    beyond_limit=2,
    cut={"base": 7, "tuned": 0, "fp8": 0},
    failures={"polite": "it raised"},
    slices=[{**PART, "models": {"base": {"value": 0.1, "low": 0.0, "high": 0.2}}}],
)


def test_markdown_has_a_line_a_model_and_the_verdict() -> None:
    lines = markdown(REPORT).splitlines()
    base = next(line for line in lines if line.startswith("| base"))
    assert "2.0 % (1.0 to 3.0)" in base
    assert "-91.0 % (-95.0 to -87.0)" in base
    tuned = next(line for line in lines if line.startswith("| tuned"))
    assert tuned.split("|")[3].strip() == ""  # not compared with itself
    assert any(line.startswith("| fp8, simulated | 90.0 %") for line in lines)
    assert "base: 7 answers reached evaluate.max_new_tokens." in lines
    assert "Gate refused: evaluate.gate.format: fp8 answers too little." in lines
    assert "- learned: passed: enough" in lines
    assert "Compared only: int4_awq answers less." in lines
    assert "| tag cards | 25 | 10.0 % (0.0 to 20.0) |  |  |" in lines
    assert "polite was not measured: it raised." in lines


def test_the_written_report_is_the_report(tmp_path: Path) -> None:
    write(REPORT, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == REPORT
    assert REPORT["gate"]["passed"] is False
    assert REPORT["gate"]["failures"] == ["evaluate.gate.format: fp8 answers too little"]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_an_earlier_version_ranks_by_exact_match() -> None:
    assert main_metric({}) is METRICS["exact_match"]
    assert main_metric(REPORT).title == "exact match"


def test_what_each_model_forgot_is_one_line() -> None:
    models = {name: {"general_perplexity": {"value": v}} for name, v in
              (("base", 18.12), ("tuned", 20.06), ("fp8", 20.7))}  # fmt: skip
    assert forgotten(models) == "base 18.1, tuned 20.1, fp8, simulated 20.7"
    assert forgotten(REPORT["models"]) == ""
