"""lm-evaluation-harness on an engine that we serve, with tasks whose data is here: its figures are
those that PyTorch gives for the same questions, in the report and in the gate.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.core.extras import EXTRAS
from pipeline.models.chat.renderer import Chat
from pipeline.stages import benchmark
from tests.integration.test_served_accuracy import ASKED, built, make_inputs, random_model, row

if missing := EXTRAS["lm-eval"].missing():
    pytest.skip(
        f"{missing[0]} is not installed: {EXTRAS['lm-eval'].command}", allow_module_level=True
    )

TOKENS = 8  # of an answer
CHOICES = ("a card", "the loan of a branch")
COMMON = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
doc_to_text: "{{{{question}}}}"
"""
ANSWER = """\
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["@@@"], max_gen_toks: 8, do_sample: false, temperature: 0}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def greedy(model: torch.nn.Module, chat: Chat, question: str) -> str:
    """PyTorch's answer of at most TOKENS tokens."""
    ids = chat.prompt([{"role": "user", "content": question}])
    answer: list[int] = []
    with torch.inference_mode():
        while len(answer) < TOKENS:
            token = int(model(torch.tensor([[*ids, *answer]])).logits[0, -1].argmax())
            if token in chat.stop_ids:
                break
            answer.append(token)
    return chat.answer(answer)


def log_probability(model: torch.nn.Module, chat: Chat, question: str, answer: str) -> float:
    """Of an answer behind the prompt of a question, by PyTorch."""
    prompt = chat.text([{"role": "user", "content": question}], generation_prompt=True)
    before, ids = chat.encode(prompt), chat.encode(prompt + answer)
    assert ids[: len(before)] == before
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids)))


def test_tasks_on_a_served_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = random_model(tmp_path)
    chat, model = Chat.load(merged.path), AutoModelForCausalLM.from_pretrained(merged.path).eval()
    said = [greedy(model, chat, question) for question in ASKED]
    likes_first = [
        log_probability(model, chat, question, CHOICES[0])
        > log_probability(model, chat, question, CHOICES[1])
        for question in ASKED
    ]
    # Every third answer is not the expected one, every fourth pair of choices is turned round.
    docs = [
        {"question": question, "answer": text if i % 3 else "no",
         "choices": CHOICES if i % 4 else CHOICES[::-1]}
        for i, (question, text) in enumerate(zip(ASKED, said, strict=True))
    ]  # fmt: skip
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, body, file in (
        ("own_answer", ANSWER, data), ("own_choice", CHOICE, data),
        ("own_gone", ANSWER, tmp_path / "gone.jsonl"),
    ):  # fmt: skip
        (tasks / f"{name}.yaml").write_text(COMMON.format(name=name, data=file) + body)
    config, engine = built(
        tmp_path, merged, "evaluate.benchmarks=[own_gone,own_answer,own_choice]",
        f"evaluate.benchmark_tasks={tasks}", "benchmark.requests=1",
        "evaluate.gate.chosen={metric:own_choice.acc,model:served,min:0.99}", engine="hf",
    )  # fmt: skip
    inputs = make_inputs(tmp_path, [row(chat, ASKED[0], said[0])], engine)
    out = tmp_path / "benchmark"
    out.mkdir()
    outcome = benchmark.run(config, inputs, out)
    served = json.loads((out / "report.json").read_text())["served"]
    found = {name: figure["value"] for name, figure in served["benchmarks"].items()}
    right = sum(doc["choices"][0] == CHOICES[not first]
                for doc, first in zip(docs, likes_first, strict=True))  # fmt: skip
    assert 0 < right < len(docs)
    assert found == {
        "own_answer.exact_match": pytest.approx(
            sum(i % 3 > 0 for i in range(len(docs))) / len(docs), abs=1e-6
        ),
        "own_choice.acc": pytest.approx(right / len(docs), abs=1e-6),
    }
    assert served["benchmarks"]["own_choice.acc"]["questions"] == len(docs)
    assert outcome.metrics["benchmark/own_choice.acc"] == found["own_choice.acc"]
    assert "evaluate.gate.chosen: the own_choice.acc of" in str(outcome.failure)
    gone = capsys.readouterr().err
    assert "benchmark own_gone is not measured: FileNotFoundError: Unable to find" in gone
