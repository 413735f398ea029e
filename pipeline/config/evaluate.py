"""Settings of stage=evaluate: the measurements, and the gate that decides on them."""

from collections.abc import Mapping

from pydantic import Field

from pipeline.config.quantize import WeightFormat
from pipeline.config.section import Batch, Section, Share, Tokens
from pipeline.core.tables import table


class MinExactMatch(Section):
    """Exact match that the tuned model must reach, by what was trained."""

    adapter: Share = Field(description="Least exact match after LoRA or DoRA; 0 asks for none")
    full: Share = Field(description="Least exact match after a full fine-tune; 0 asks for none")


class GateConfig(Section):
    """What the tuned model and the format that is exported must reach, or the run fails."""

    min_exact_match: MinExactMatch
    max_served_drop: Share = Field(
        description="Exact match that the served engine, asked as clients ask it, may lose against "
        "the tuned model"
    )
    max_drop: Mapping[WeightFormat, Share] = Field(
        description="Exact match that the exported format, simulated, may lose against the tuned "
        "model, by format; others keep their own default (pipeline/optimization/formats.py)"
    )

    def allowed_drop(self, format: str) -> float:
        """Exact match that a format may lose against the tuned model."""
        return self.max_drop.get(format, table("format")[format].max_drop)


class EvaluateConfig(Section):
    """Measurements on the test conversations."""

    max_new_tokens: Tokens = Field(
        description="Tokens of a generated answer; null: 256, or a quarter of engine.max_seq_len"
    )
    batch_size: Batch = Field(description="Answers that are generated at once")
    bootstrap_samples: int = Field(
        ge=100, le=1_000_000, description="Bootstrap samples behind each confidence interval"
    )
    gate: GateConfig
