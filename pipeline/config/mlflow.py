"""Settings of MLflow: what it tracks, and the name that a model has in its registry."""

import re

from pydantic import Field, field_validator

from pipeline.config.section import Section


def registrable(name: str) -> str:
    """A name with - for what MLflow refuses in a registered model's."""
    return re.sub(r"[/:.%\"']", "-", name)


class RegisterConfig(Section):
    name: str = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _taken_by_mlflow(cls, name: str) -> str:
        """Without the characters that MLflow refuses in a registered model's name."""
        allowed = registrable(name)
        if name != allowed:
            raise ValueError(
                f"MLflow takes no / : . % or quotes in a model's name: set register.name={allowed}"
            )
        return name


class TrackingConfig(Section):
    """MLflow. `uri` null: a SQLite store beside the artifacts; MLFLOW_TRACKING_URI overrules."""

    enabled: bool
    uri: str | None
    experiment: str
    upload_weights: bool
