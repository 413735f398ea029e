"""Answers and settings for the tests of measures."""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config.defaults import default_tree
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.schema import load
from pipeline.evaluation.measure import Measured, measure
from pipeline.evaluation.metrics import Answers
from pipeline.evaluation.resources import Resources, metrics_of
from pipeline.evaluation.slices import Asked

PLAIN = {"model": "local", "model.name": "m", "model.path": "data/base_model"}


def settings(metrics: Sequence[str], **changes: Any) -> EvaluateConfig:
    """Settings of a stranger's evaluation, with these metrics; its gate is empty but for `gate`."""
    tree = copy.deepcopy(_tree())
    evaluate = tree["evaluate"]
    evaluate["metrics"], evaluate["gate"] = list(metrics), changes.pop("gate", {})
    for name, value in changes.items():
        *sections, key = name.split(".")
        place = evaluate
        for section in sections:
            place = place[section]
        place[key] = value
    return load(tree).evaluate


@cache
def _tree() -> dict[str, Any]:
    """Composed once: that takes longer than most of these tests."""
    return default_tree(PLAIN)


def answers(
    texts: Sequence[str], expected: Sequence[str], tags: Sequence[Sequence[str]] = (), **more: Any
) -> Answers:
    asked = [
        Asked(
            [{"role": "user", "content": f"question {i}"}],
            f"test.jsonl:{i + 1}",
            tuple(tags[i]) if tags else (),
            "de" if i % 2 else "en",
        )
        for i in range(len(texts))
    ]
    return Answers(texts, expected, asked=asked, **more)


def measured(
    chosen: EvaluateConfig, given: Answers, out: Path, *, served: bool = False
) -> Measured:
    return measure(metrics_of(chosen), given, Resources(chosen, out, seed=1), served=served)


def values(found: Measured) -> Mapping[str, list[float]]:
    return {name: list(sample.values) for name, sample in found.samples.items()}
