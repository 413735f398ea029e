"""What metrics need beside the answers: files, patterns, an embedding model, a judge.

Each is opened at its first use, once for all models of a run.
"""

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config.evaluate import OWN, EvaluateConfig
from pipeline.evaluation import own, structure
from pipeline.evaluation.embedding import similarity
from pipeline.evaluation.judge import Judge
from pipeline.evaluation.metrics import METRICS, Metric, Values

VERDICTS = "judge.jsonl"


class Resources:
    """Args:
    out: folder for the judge's verdicts. seed: of the judge's sampling.
    """

    def __init__(self, settings: EvaluateConfig, out: Path, *, seed: int) -> None:
        self.settings, self._out, self._seed = settings, out, seed

    @cached_property
    def json_schema(self) -> Callable[[str], bool]:
        assert self.settings.json_schema is not None
        return structure.json_schema_check(self.settings.json_schema)

    @cached_property
    def pattern(self) -> "re.Pattern[str]":
        return re.compile(self.settings.pattern or "", re.DOTALL)

    @cached_property
    def refusal(self) -> "re.Pattern[str]":
        return re.compile(self.settings.refusal_pattern or structure.REFUSAL, re.IGNORECASE)

    @cached_property
    def similarity(self) -> Values:
        assert self.settings.embedder is not None
        return similarity(self.settings.embedder)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.settings.judge, self._out / VERDICTS, seed=self._seed)

    @property
    def judge_scores(self) -> Values:
        return self._judge.scores

    @property
    def judge_wins(self) -> Values:
        return self._judge.wins

    @property
    def judge_report(self) -> dict[str, Any] | None:
        """What the judge was asked and spent; None if it was not asked."""
        return self._judge.report() if "_judge" in vars(self) else None


def metrics_of(settings: EvaluateConfig) -> dict[str, Metric]:
    """The records of everything that is measured, by name; of one's own functions, too.

    A function that cannot be loaded has a record whose values raise why.
    """
    functions = {m["function"]: m for name in settings.metrics if (m := OWN.fullmatch(name))}
    return {
        name: own.load(Path(functions[name]["file"]), name) if name in functions else METRICS[name]
        for name in settings.measured
    }
