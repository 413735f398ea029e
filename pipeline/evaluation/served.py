"""The served engine's figures: its answers to the test questions, measured, with their intervals.

Knows answers and values; neither servers nor models.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError
from pipeline.evaluation.measure import Bootstrap, Measured
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.slices import Slice, words

if TYPE_CHECKING:
    from pipeline.data.dataset import Row

ANSWERS = "answers.jsonl"
LESS_TUNED = "less_tuned"


def question_id(row: "Row") -> str:
    """Names a test question by its content: what is asked, and the answer that counts as right."""
    content = json.dumps([row.messages[:-1], row.answer], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def figures(
    metrics: Mapping[str, Metric],
    main: str,
    measured: Measured,
    tuned: Measured,
    bootstrap: Bootstrap,
) -> dict[str, dict[str, float]]:
    """Every metric that a served engine has, as value, low and high; and the main one less that of
    the tuned model on the same questions, LESS_TUNED."""
    found = {
        name: asdict(value)
        for name in measured.samples
        if (value := bootstrap.estimate(metrics[name], measured)) is not None
    }
    difference = bootstrap.difference(metrics[main], measured, tuned)
    if difference is not None:
        values = {key: getattr(difference, key) for key in ("value", "low", "high", "questions")}
        found[LESS_TUNED] = values
    return found


def write_answers(folder: Path, rows: "Sequence[Row]", measured: Measured) -> None:
    """Write answers.jsonl: each question with the expected answer, the served one, and the metrics
    that apply to it."""
    answers = measured.answers
    with (folder / ANSWERS).open("w", encoding="utf-8") as stream:
        for place, (row, asked) in enumerate(zip(rows, answers.asked, strict=True)):
            values = {name: sample.values[place] for name, sample in measured.samples.items()}
            record = {
                "id": question_id(row),
                "question": asked.text,
                "expected": row.answer,
                "answer": answers.texts[place],
                "cut": answers.cut[place],
                "metrics": {n: value for n, value in values.items() if not math.isnan(value)},
                "source": row.source,
                "slices": [list(slice) for slice in asked.slices],
            }
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def scores(
    rows: "Sequence[Row]", measured: Measured, metric: str, slice: Slice | None = None
) -> dict[str, float]:
    """A metric by question, as `read_scores` reads it, of answers that were asked just now."""
    sample, asked = measured.samples[metric], measured.answers.asked
    return {
        question_id(row): sample.values[place]
        for place, row in enumerate(rows)
        if not math.isnan(sample.values[place]) and (slice is None or slice in asked[place].slices)
    }


def read_scores(folder: Path, metric: str, slice: Slice | None = None) -> dict[str, float]:
    """A metric in answers.jsonl by the question's id, of all questions or of a slice of them.

    Raises:
        ArtifactError: an earlier version of the pipeline wrote the file.
    """
    lines = (folder / ANSWERS).read_text(encoding="utf-8").splitlines()
    records: list[Mapping[str, Any]] = [json.loads(line) for line in lines]
    if any("metrics" not in record for record in records):
        raise ArtifactError(
            f"{folder / ANSWERS} was written by an earlier version: run "
            "`python -m pipeline stage=benchmark` again"
        )
    return {
        str(record["id"]): float(record["metrics"][metric])
        for record in records
        if metric in record["metrics"] and (slice is None or list(slice) in record["slices"])
    }


def key_of(metric: str, slice: Slice | None) -> str:
    """The name of such scores, as in "exact_match on tag cards"."""
    return f"{metric}{words(slice)}"


def describe(served: Mapping[str, Any]) -> str:
    """What was asked, in words: the engine, its precision, and how answers are sampled."""
    sampling = ", ".join(f"{name} {value:g}" for name, value in served["sampling"].items())
    return f"{served['runtime']} {served['precision']}, {sampling}"
