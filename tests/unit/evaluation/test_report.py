import json
from pathlib import Path

from pipeline.evaluation.confidence import Estimate
from pipeline.evaluation.report import build, markdown, write


def figures(value: float) -> dict[str, Estimate]:
    names = ("exact_match", "token_f1", "answer_loss", "perplexity")
    return {name: Estimate(value, value - 0.01, value + 0.01) for name in names}


REPORT = build(
    {"base": figures(0.02), "tuned": figures(0.93), "fp8": figures(0.9)},
    {"base": Estimate(-0.91, -0.95, -0.87)},
    ["fp8 answers too little"],
    ["int4_awq answers less"],
    questions=225,
    method="adapter",
    beyond_limit=2,
    cut={"base": 7, "tuned": 0, "fp8": 0},
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
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1
    assert "Gate refused: fp8 answers too little." in lines
    assert "Compared only: int4_awq answers less." in lines


def test_the_written_report_is_the_report(tmp_path: Path) -> None:
    write(REPORT, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == REPORT
    assert REPORT["gate"]["passed"] is False
    assert REPORT["gate"]["failures"] == ["fp8 answers too little"]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
