"""Settings of stage=profiles."""

from typing import Literal

from pydantic import Field

from pipeline.config.section import Section


class ProfilesConfig(Section):
    """What stage=profiles prints."""

    format: Literal["table", "json"] = Field(description="Form of the output")
