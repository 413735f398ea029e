"""docs/scaling.md and its results say what the planner says today."""

import json

from bench import scaling_on_paper
from pipeline.graph import ROOT
from pipeline.hardware import GIB
from pipeline.planner import speed
from pipeline.planner.memory import peak
from tests.unit.planner.cases import MEASURED, workload


def test_the_table_on_paper_is_todays() -> None:
    lines = [scaling_on_paper.work_out(*line) for line in scaling_on_paper.LINES]
    assert scaling_on_paper.table(lines) in (ROOT / "docs/scaling.md").read_text()
    kept = json.loads((ROOT / "bench/results/scaling_on_paper.json").read_text())
    assert kept["lines"] == lines
    assert kept["measured"] is False


def test_the_table_of_measured_points_is_todays() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    for name, (changes, gib, rate) in MEASURED.items():
        work = workload(**changes)
        step = speed.step(work, scaling_on_paper.KNOWN["h200"], node=8)
        assert step is not None
        predicted = peak(work).tensors / GIB, step.tokens / step.seconds
        row = f"| {name} | {gib} | {predicted[0]:.1f} | {rate:,} | {predicted[1]:,.0f} |"
        assert row in text
