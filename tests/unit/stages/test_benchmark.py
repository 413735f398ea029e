"""benchmark: figures from timed answers, and a server that never outlives it."""

from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.serving.benchmark.load_generator import Level, TimedResponse
from pipeline.serving.server_process import running_server
from pipeline.stages import benchmark


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [benchmark._percentile(values[::-1], p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert benchmark._percentile([3.0], 50) == 3
    assert benchmark._percentile([1.0, 2.0], 50) == 1


def test_figures_of_a_load() -> None:
    answers = [
        TimedResponse("a", 11, 0.1, 0.6),
        TimedResponse("b", 1, 0.2, 0.2),
        TimedResponse("c", 5, 0.3, 0.7),
    ]
    figures = benchmark._figures(Level(2, 0.5, answers))
    assert figures["at_once"] == 2
    assert figures["requests_per_second"] == pytest.approx(6)
    assert figures["output_tokens_per_second"] == pytest.approx(34)
    assert figures["first_token_ms_p50"] == pytest.approx(200)
    assert figures["latency_ms_p95"] == pytest.approx(700)
    # An answer of one token has no time between tokens.
    assert figures["token_ms_p50"] == pytest.approx(50)
    assert figures["token_ms_p99"] == pytest.approx(100)


def test_the_report_has_a_row_for_each_load() -> None:
    figures = [
        benchmark._figures(Level(n, 1.0, [TimedResponse("a", 2, 0.1 * n, 0.2 * n)])) for n in (1, 4)
    ]
    served = {"runtime": "hf", "precision": "fp32", "sampling": {"temperature": 0.7, "top_p": 0.9}}
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    served |= {"exact_match": share, "token_f1": share, "less_tuned": share}
    names = {"exact_match": "exact match", "polite": "polite"}
    served["metrics"] = {
        name: {"name": name, "title": title, "format": ".1%", "higher_is_better": True}
        for name, title in names.items()
    }
    served |= {"metric": served["metrics"]["exact_match"], "failures": {"polite": "it raised"}}
    served |= {"benchmarks": {"gsm8k.exact_match": {**share, "questions": 40}}}
    served |= {"questions": 225, "cut": 3, "refused": 2}
    text = benchmark._markdown(served, [], {"start_seconds": 0.5}, figures)
    assert "Engine: hf fp32, temperature 0.7, top_p 0.9." in text
    assert "- exact match: 50.0 % (40.0 to 60.0)" in text
    assert "3 answers were cut at the limit of tokens, and 2 questions were refused" in text
    assert "- benchmark gsm8k.exact_match: 0.5 (0.4 to 0.6), 40 questions" in text
    assert "- polite was not measured: it raised" in text
    assert "- gate: passed" in text
    assert "- start seconds: 0.5" in text
    rows = [line for line in text.splitlines() if line.startswith(("| 1 ", "| 4 "))]
    assert len(rows) == 2
    assert "100.0" in rows[0]
    assert "400.0" in rows[1]


def test_a_server_that_does_not_start_ends_with_its_own_words(tmp_path: Path) -> None:
    with (
        pytest.raises(PipelineError, match=r"exit code 4: .*missing does not exist"),
        running_server(tmp_path / "missing", model="m", log=tmp_path / "log"),
    ):
        pass
