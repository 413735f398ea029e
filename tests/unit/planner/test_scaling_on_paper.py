"""docs/scaling.md and its results say what the planner says today."""

import json

from bench import scaling_on_paper
from pipeline.core.paths import ROOT


def test_the_table_on_paper_is_todays() -> None:
    lines = [scaling_on_paper.work_out(*line) for line in scaling_on_paper.LINES]
    assert scaling_on_paper.table(lines) in (ROOT / "docs/scaling.md").read_text()
    kept = json.loads((ROOT / "bench/results/scaling_on_paper.json").read_text())
    assert kept["lines"] == lines
    assert kept["measured"] is False
