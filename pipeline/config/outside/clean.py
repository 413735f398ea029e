"""Settings of stage=clean."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section

Kind = Literal["variants", "work", "sweeps", "outbox", "backups"]


class CleanConfig(Section):
    """What stage=clean removes. Present artifacts and those of registered versions are kept."""

    what: tuple[Kind, ...] = Field(
        description="What to remove: results of other settings (variants), interrupted runs "
        "(work), sweeps, runs that MLflow refused (outbox), backups of its store; [] only shows"
    )
    older_than: Annotated[float, Field(ge=0, le=36_600)] = Field(
        description="Days for which a thing must not have changed"
    )
    keep_versions: Annotated[int, Field(ge=0, le=10**6)] | None = Field(
        description="Registered versions, the newest, whose results are kept, beside those with an "
        "alias; null: all"
    )
    confirm: bool = Field(description="Remove without asking at the terminal")
