"""Settings of stage=evaluate: the measurements, and the gate that decides on them."""

from collections.abc import Mapping
from typing import Self, get_args

from pydantic import Field, model_validator

from pipeline.config.quantize import QuantizationFormat
from pipeline.config.section import Positive, Section, Share


class MinExactMatch(Section):
    """Exact match that the tuned model must reach, by what was trained."""

    adapter: Share = Field(description="Least exact match after LoRA or DoRA; 0 asks for none")
    full: Share = Field(description="Least exact match after a full fine-tune; 0 asks for none")


class GateConfig(Section):
    """What the tuned model and the format that is exported must reach, or the run fails."""

    min_exact_match: MinExactMatch
    max_drop: Mapping[QuantizationFormat, Share] = Field(
        description="Exact match that the exported format may lose against the tuned model"
    )

    @model_validator(mode="after")
    def _every_format(self) -> Self:
        if missing := set(get_args(QuantizationFormat)) - self.max_drop.keys():
            raise ValueError(f"max_drop has no bound for {', '.join(sorted(missing))}")
        return self


class EvaluateConfig(Section):
    """Measurements on the test conversations."""

    max_new_tokens: Positive = Field(description="Tokens of a generated answer")
    batch_size: Positive = Field(description="Answers that are generated at once")
    bootstrap_samples: int = Field(
        ge=100, description="Bootstrap samples behind each confidence interval"
    )
    gate: GateConfig
