"""Settings of stage=register: the model's name in MLflow's registry."""

import re

from pydantic import Field, field_validator

from pipeline.config.section import Section


def registrable(name: str) -> str:
    """The name with - for each character that MLflow refuses in a registered model's name."""
    return re.sub(r"[/:.%\"']", "-", name)


class RegisterConfig(Section):
    """The registered model."""

    name: str = Field(min_length=1, description="Name of the registered model in MLflow")

    @field_validator("name")
    @classmethod
    def _accepted_by_mlflow(cls, name: str) -> str:
        allowed = registrable(name)
        if name != allowed:
            raise ValueError(
                f"MLflow takes no / : . % or quotes in a model's name: set register.name={allowed}"
            )
        return name
