"""The served engine's figures: its answers to the test questions, scored, with their intervals.

Knows answers and scores; neither servers nor models.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.confidence import estimate, paired_difference
from pipeline.evaluation.metrics import METRICS, Answers, Metric, gate_metric

if TYPE_CHECKING:
    from pipeline.data.dataset import Row

ANSWERS = "answers.jsonl"
LESS_TUNED = "less_tuned"


def metrics() -> dict[str, tuple[str, Metric]]:
    """Figures of a served engine: their titles and metrics, by their names."""
    found = {name: (metric.title, metric) for name, metric in METRICS.items() if metric.gates}
    metric = gate_metric()
    return {**found, LESS_TUNED: (f"{metric.title} less that of the tuned model", metric)}


def question_id(row: "Row") -> str:
    """Names a test question by its content: what is asked, and the answer that counts as right."""
    content = json.dumps([row.messages[:-1], row.answer], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def scores(rows: "Sequence[Row]", answers: Answers) -> dict[str, float]:
    """The gate's metric of each answer, by the question's id."""
    values = gate_metric().values(answers)
    return {question_id(row): value for row, value in zip(rows, values, strict=True)}


def figures(
    answers: Answers, tuned: Answers, *, samples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Every metric that follows from the answers' texts, as value, low and high; and the gate's
    metric less that of the tuned model on the same questions, LESS_TUNED.

    tuned: the tuned model's answers.
    """
    found = {
        name: asdict(estimate(metric, answers, samples=samples, seed=seed))
        for name, metric in METRICS.items()
        if metric.gates
    }
    values = gate_metric().values
    difference = paired_difference(values(answers), values(tuned), samples=samples, seed=seed)
    return {**found, LESS_TUNED: asdict(difference)}


def write_answers(folder: Path, rows: "Sequence[Row]", answers: Answers) -> None:
    """Write answers.jsonl: each question with the expected answer, the served one and its score."""
    scored = scores(rows, answers)
    with (folder / ANSWERS).open("w", encoding="utf-8") as stream:
        for row, text, cut in zip(rows, answers.texts, answers.cut, strict=True):
            record = {
                "id": question_id(row),
                "question": row.messages[-2]["content"],
                "expected": row.answer,
                "answer": text,
                "cut": cut,
                gate_metric().name: scored[question_id(row)],
                "source": row.source,
            }
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_scores(folder: Path) -> dict[str, float]:
    """The scores in answers.jsonl, by the question's id."""
    lines = (folder / ANSWERS).read_text(encoding="utf-8").splitlines()
    records: list[Mapping[str, Any]] = [json.loads(line) for line in lines]
    return {str(record["id"]): float(record[gate_metric().name]) for record in records}


def describe(served: Mapping[str, Any]) -> str:
    """What was asked, in words: the engine, its precision, and how answers are sampled."""
    sampling = ", ".join(f"{name} {value:g}" for name, value in served["sampling"].items())
    return f"{served['runtime']} {served['precision']}, {sampling}"
