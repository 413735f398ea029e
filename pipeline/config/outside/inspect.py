"""Settings of stage=inspect."""

from typing import Literal

from pydantic import Field

from pipeline.config.section import Place, Section


class InspectConfig(Section):
    """What stage=inspect shows, beside the settings of data and prepare, by which it reads."""

    page: Place = Field(description="HTML file to write; one that is there is replaced")
    samples: int = Field(ge=0, le=10_000, description="Rendered conversations on the page")
    format: Literal["table", "json"] = Field(description="Form of the output in the terminal")
