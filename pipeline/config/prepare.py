"""Settings of stage=prepare: how rows become a dataset."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Form, Section, Share


class PrepareConfig(Section):
    """How rows become a dataset."""

    max_length: int = Field(
        ge=8,
        le=2**24,
        description="Tokens of a rendered conversation; a longer row is refused. "
        "null: 4,096, or the model's positions if fewer",
    )
    validation_share: float = Field(
        ge=0, le=0.5, description="Share of the training rows that are kept for validation"
    )
    # Below 0.9 the search for candidates would miss pairs (pipeline/data/deduplication.py).
    near_duplicate_threshold: float = Field(
        ge=0.9, le=1, description="Similarity to another training row from which a row is dropped"
    )
    leak_threshold: float = Field(
        ge=0.9, le=1, description="Similarity to a test question from which a row is dropped"
    )
    max_reject_share: Share = Field(description="Share of refused rows above which the stage fails")
    samples: int = Field(ge=0, le=1_000, description="Rendered conversations to print")
    engine: Literal["local", "ray"] = Field(
        description="Where rows are read and rendered: in this process, or by tasks on Ray; the "
        "rows and bytes are the same"
    )
    ray_address: Annotated[str, Form(r"auto|[\w.:/\[\]-]{1,255}", "auto, or HOST:PORT")] | None = (
        Field(description="Ray cluster, as HOST:PORT or auto; null starts Ray on this machine")
    )
