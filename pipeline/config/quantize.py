"""Settings of stage=quantize (conf/quantize)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Batch, Count, Section, choice
from pipeline.core.tables import table

WeightFormat = Annotated[str, choice("format")]


class CalibrationConfig(Section):
    """The training rows on which ModelOpt measures activations."""

    rows: Count = Field(description="Training conversations to calibrate on")
    batch_size: Batch = Field(description="Conversations that are computed at once")
    max_length: int = Field(ge=8, le=2**24, description="Tokens of a conversation; the rest is cut")


class QuantizeConfig(Section):
    """Post-training quantization with ModelOpt."""

    format: WeightFormat = Field(description="Weight format to export and serve")
    compare: tuple[WeightFormat, ...] = Field(
        description="Further formats that are evaluated beside it; [] saves their time"
    )
    kv_cache: Literal["none", "fp8"] = Field(description="Format of the key-value cache")
    exclude: tuple[str, ...] = Field(
        description="Parts of the names of modules that stay unquantized; must include lm_head"
    )
    calibration: CalibrationConfig

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if "lm_head" not in self.exclude:
            raise ValueError("exclude must name lm_head: no runtime here takes it quantized")
        formats = [table("format")[name] for name in (self.format, *self.compare)]
        if self.kv_cache != "none" and not all(format.quantized for format in formats):
            raise ValueError("format none leaves the key-value cache as it is: set kv_cache=none")
        return self
