"""Settings of stage=graph."""

from typing import Literal

from pydantic import Field

from pipeline.config.section import Place, Section


class GraphConfig(Section):
    """How stage=graph draws the stages."""

    format: Literal["text", "mermaid", "svg"] = Field(
        description="Form of the drawing: for the terminal, for Markdown, or a picture"
    )
    to: Place | None = Field(description="File to write; null prints the drawing")
