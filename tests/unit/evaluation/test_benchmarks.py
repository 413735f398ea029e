"""lm-evaluation-harness: its results are read, and its failures cost a line."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.evaluation.benchmarks import results, run_benchmarks

REPORT = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.4,
            "exact_match_stderr,strict-match": 0.05,
            "acc,none": 0.5,
            "acc_stderr,none": "N/A",
        }
    },
    "n-samples": {"gsm8k": {"original": 1319, "effective": 100}},
}


def test_figures_have_intervals_from_their_standard_errors(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "results_2026.json").write_text(json.dumps(REPORT))
    found = results(tmp_path, "gsm8k")
    assert set(found) == {"gsm8k.exact_match.strict-match", "gsm8k.acc"}
    strict = found["gsm8k.exact_match.strict-match"]
    assert (strict.value, strict.questions) == (0.4, 100)
    assert strict.low == pytest.approx(0.302, abs=1e-3)
    assert found["gsm8k.acc"].low == found["gsm8k.acc"].high == 0.5


@pytest.mark.parametrize("content", ["", "{}", '{"results": {}}', "[]"])
def test_results_that_are_none_are_an_error(content: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="the harness"):
        results(tmp_path / "nothing", "gsm8k")
    (tmp_path / "results_1.json").write_text(content)
    with pytest.raises(PipelineError, match="the harness"):
        results(tmp_path, "gsm8k")


def test_a_benchmark_that_fails_costs_a_line_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for the harness: python -m lm_eval, from the working folder's package."""
    program, harness = tmp_path / "harness.py", tmp_path / "python"
    words = shlex.join([sys.executable, str(program)])
    harness.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.write_text(
        "import json, pathlib, sys\n"
        "a = sys.argv\ntask = a[a.index('--tasks') + 1]\nkind = a[a.index('--model') + 1]\n"
        "if task == 'gone':\n"
        "    sys.exit('Traceback...\\nConnectionError: no data set here')\n"
        "if task == 'choice' and 'chat' in kind:\n"
        "    sys.exit('NotImplementedError: loglikelihood is not supported for chat')\n"
        "out = pathlib.Path(a[a.index('--output_path') + 1])\nout.mkdir()\n"
        "report = {'results': {task: {'acc,none': 0.25}}, 'n-samples': {}}\n"
        "(out / 'results_1.json').write_text(json.dumps(report))\n"
    )
    harness.chmod(0o755)
    found = run_benchmarks(
        harness, "http://127.0.0.1:1/v1", tmp_path, model="m", tasks=["gone", "choice", "other"],
        folder=tmp_path, limit=3, concurrency=4, out=tmp_path,
    )  # fmt: skip
    assert {name: figure.value for name, figure in found.items()} == {
        "choice.acc": 0.25,
        "other.acc": 0.25,
    }
    said = capsys.readouterr().err
    assert "benchmark gone is not measured: ConnectionError: no data set here" in said
