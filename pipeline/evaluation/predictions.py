"""predictions.jsonl: each test question with the expected answer, every model's answer and figures.

`stage=evaluate` writes it; later stages compare with the models that it asked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError
from pipeline.evaluation.confidence import Sample
from pipeline.evaluation.measure import Measured
from pipeline.evaluation.metrics import Answers
from pipeline.evaluation.slices import asked_of

if TYPE_CHECKING:
    from pipeline.data.dataset import Row

NAME = "predictions.jsonl"


def records(
    rows: "Sequence[Row]", models: Mapping[str, Measured], confidences: Sequence[float]
) -> list[dict[str, Any]]:
    """A record of each question. confidences: of the tuned model's answers."""
    found = []
    for place, row in enumerate(rows):
        asked, sure = asked_of(row), confidences[place]
        found.append(
            {
                "question": asked.text,
                "expected": row.answer,
                "answers": {name: m.answers.texts[place] for name, m in models.items()},
                "cut": [name for name, m in models.items() if m.answers.cut[place]],
                "confidence": None if math.isnan(sure) else round(sure, 6),
                "metrics": {name: _values(m, place) for name, m in models.items()},
                "source": row.source,
                "slices": [list(slice) for slice in asked.slices],
            }
        )
    return found


def write(found: Sequence[Mapping[str, Any]], folder: Path) -> None:
    with (folder / NAME).open("w", encoding="utf-8") as stream:
        for record in found:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_predictions(folder: Path, rows: "Sequence[Row]") -> dict[str, Measured]:
    """The answers of each model, and its metrics that are means of values by question.

    rows: the test questions, in the same order.

    Raises:
        ArtifactError: an earlier version of the pipeline wrote the file.
    """
    lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    if not all("metrics" in record for record in found):
        raise ArtifactError(
            f"{folder / NAME} was written by an earlier version: run "
            "`python -m pipeline stage=evaluate` again"
        )
    asked = [asked_of(row) for row in rows]
    models = {}
    for model in found[0]["answers"]:
        answers = Answers(
            texts=[record["answers"][model] for record in found],
            expected=[str(row.answer) for row in rows],
            cut=[model in record["cut"] for record in found],
            asked=asked,
        )
        values = [record["metrics"][model] for record in found]
        names = dict.fromkeys(name for entry in values for name in entry)
        samples = {name: Sample([v.get(name, math.nan) for v in values]) for name in names}
        models[model] = Measured(answers, samples, {})
    return models


def _values(measured: Measured, place: int) -> dict[str, float]:
    """The metrics of one answer that are means over the questions, as far as they apply to it."""
    return {
        name: sample.values[place]
        for name, sample in measured.samples.items()
        if sample.weights is None and not math.isnan(sample.values[place])
    }
