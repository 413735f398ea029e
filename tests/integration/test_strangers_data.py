"""A platform engineer's afternoon: a Parquet folder in ShareGPT form, no test file, documents
beside it, a judge on a local endpoint, and a gate on two metrics and a slice, by the commands that
users type.

The model is tiny, and is served by the PyTorch engine, as the judge is.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.orchestration import project
from tests.integration.family_case import MODELS
from tests.integration.verdicts import NAME, served_judge

WORDS = ("card", "loan", "wire", "fee", "limit", "branch", "rate", "form")
FAQ = """# Questions

## When does the branch open?

The branch opens at nine.

## What does a wire cost?

A wire costs five dollars.
"""
LETTERED = """Help

Q: Who signs the form?
A: The owner of the account signs it.
"""
HTML = "<h1>Help</h1><h2>Where is the safe?</h2><p>The safe is <b>below</b>.</p><nav>Home</nav>"
OWN = '''
def says_of(answer):
    """share of the answers that say of"""
    return " of " in f" {answer} "
says_of.format = ".0%"
'''


def parquet(file: Path, words: tuple[str, ...]) -> None:
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"What is a {a} {b}?"},
                {"from": "gpt", "value": f"It is a {b} of the {a}."},
            ],
            "category": "money" if b in ("fee", "rate") else "places",
        }
        for a in words
        for b in WORDS
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_a_strangers_data_is_measured_and_gated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = MODELS["llama"](tmp_path / "model")
    project.init(tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    Path("rows").mkdir()
    parquet(Path("rows/part-0.parquet"), WORDS[:4])
    parquet(Path("rows/part-1.parquet"), WORDS[4:])
    for name, text in (("faq.md", FAQ), ("help.txt", LETTERED), ("help.html", HTML)):
        (Path("rows") / name).write_text(text)
    Path("measures.py").write_text(OWN)
    given = ["model=local", "model.name=tiny", f"model.path={model}", "tracking.enabled=false"]

    def run(stages: str, *more: str, code: int = 0) -> str:
        for stage in stages.split():
            found = main([f"stage={stage}", *given, *more])
            said = capfd.readouterr().err
            assert found == code, f"stage={stage}: {said}"
        return said

    data = ["data=files", "data.folder=rows", "data.train=[*.parquet]",
            "data.sources=[faq.md,help.*]", "prepare.max_length=128"]  # fmt: skip
    refused = run("prepare", *data, code=2)
    assert "data.test=[]: name the files with test questions, or set data.test_share" in refused
    run("prepare", *data, "data.test_share=0.2")
    made = json.loads(Path("artifacts/prepare/statistics.json").read_text())
    assert {Path(name).name: found for name, found in made["formats"].items()} == {
        "part-0.parquet": {"conversations": 32}, "part-1.parquet": {"conversations": 32},
        "faq.md": {"section": 2}, "help.txt": {"section": 1}, "help.html": {"section": 1},
    }  # fmt: skip
    assert made["splits"]["test"]["rows"] >= 6
    run("import")
    run("finetune", "finetune.max_steps=2", "finetune.global_batch_size=8")
    run("merge")
    run("quantize", "quantize=none", "quantize.compare=[]")
    with served_judge(tmp_path / "judge") as judge:
        measures = [
            "evaluate.metrics=[judge_score,judge_wins,token_f1,measures.py:says_of]",
            f"evaluate.judge.endpoint.base_url={judge.url}",
            "evaluate.judge.endpoint.max_tokens=16",
            "evaluate.judge.endpoint.price.prompt=1000",
            "evaluate.judge.endpoint.budget.cost=1000",
            "evaluate.max_new_tokens=8",
            "evaluate.gate.judged={metric:judge_score,min:0.5}",
            "evaluate.gate.money={metric:judge_wins,tag:money,min:0.4}",
            "evaluate.gate.served={metric:token_f1,model:served,against:tuned,margin:0.5}",
        ]
        run("evaluate", *measures)
        run("export", "quantize=none")
        run("build", "engine=hf", "engine.max_input_len=64", "engine.max_seq_len=96")
        run("benchmark", *measures, "benchmark.concurrency=[4]", "benchmark.requests=4",
            "benchmark.max_tokens=8")  # fmt: skip
        missed = run("evaluate", *measures, "evaluate.gate.judged.min=0.9", code=5)
    assert "evaluate.gate.judged: the judge's score of the tuned model is 66.7%" in missed
    report = json.loads(Path("artifacts/evaluate/report.json").read_text())
    named = {(part["kind"], part["name"]) for part in report["slices"]}
    sources = {("source", f"rows/part-{number}.parquet") for number in range(2)}
    assert named == {("tag", "money"), ("tag", "places")} | sources
    judged = report["judge"]
    assert (judged["model"], judged["agreement"], judged["unread"]) == (NAME, 1, 0)
    assert judged["asked"] > 2 * report["questions"]
    assert float(judged["cost"]) == pytest.approx(judged["tokens"] / 1000, rel=0.1)
    served = json.loads(Path("artifacts/benchmark/report.json").read_text())
    assert served["gate"]["passed"]
    assert served["served"]["judge_score"]["value"] == pytest.approx(6 / 9)
    assert "says_of" in served["served"]
    assert "Gate" in Path("artifacts/evaluate/report.html").read_text()
