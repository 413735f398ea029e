"""lm-evaluation-harness itself, on a served engine, with tasks of the user's own; and a judge that
is our own server.
"""

import json
from pathlib import Path

import pytest

from pipeline.core.artifact import Artifact
from pipeline.models.chat.renderer import Chat
from pipeline.serving.server_process import running_server
from pipeline.stages import benchmark
from tests.integration.test_served_accuracy import (  # noqa: F401
    ASKED,
    ask,
    built,
    folder,
    make_inputs,
    merged,
    row,
)

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")

TASK = """\
task: bank
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {max_gen_toks: 24, until: ["never"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_tasks_of_the_users_own_are_asked_and_decide(
    folder: Path,  # noqa: F811
    merged: Artifact,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    config, engine = built(
        tmp_path, merged, "evaluate.benchmarks=[bank,gone]", f"evaluate.benchmark_tasks={tasks}",
        "evaluate.gate.bank={metric:bank.exact_match,model:served,min:0.9}",
    )  # fmt: skip
    with running_server(engine.path, model="bank", log=tmp_path / "log") as server:
        answers = [ask(server, question, max_tokens=24)[0] for question in ASKED[:8]]
    questions = tasks / "questions.jsonl"
    with questions.open("w") as stream:
        for i, (question, answer) in enumerate(zip(ASKED, answers, strict=False)):
            wanted = answer if i % 4 else "something else"
            stream.write(json.dumps({"question": question, "answer": wanted}) + "\n")
    (tasks / "bank.yaml").write_text(TASK.replace("FILE", str(questions)))
    (tasks / "gone.yaml").write_text(
        TASK.replace("FILE", str(tasks / "absent.jsonl")).replace("task: bank", "task: gone")
    )
    chat = Chat.load(merged.path)
    rows = [row(chat, *pair) for pair in zip(ASKED, answers, strict=False)]
    out = tmp_path / "benchmark"
    out.mkdir()
    outcome = benchmark.run(config, make_inputs(tmp_path, rows, engine), out)
    assert outcome.metrics["benchmark/bank.exact_match"] == 6 / 8
    assert "evaluate.gate.bank: " in str(outcome.failure)
    assert "75" in str(outcome.failure)
    served = json.loads((out / "report.json").read_text())["served"]
    assert served["benchmarks"]["bank.exact_match"]["value"] == 6 / 8
    assert served["benchmarks"]["bank.exact_match"]["questions"] == 8
    said = capsys.readouterr().err
    assert "benchmark gone is not measured:" in said
    assert "absent.jsonl" in said
