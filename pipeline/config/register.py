"""Settings of stage=register: the model's name in MLflow's registry."""

import re

from pydantic import Field, field_validator

from pipeline.config.section import Section, Share


def registrable(name: str) -> str:
    """The name with - for each character that MLflow refuses in a registered model's name."""
    return re.sub(r"[/:.%\"']", "-", name)


class RegisterConfig(Section):
    """The registered model."""

    name: str = Field(min_length=1, description="Name of the registered model in MLflow")
    margin: Share = Field(
        description="How much worse than the champion a version may be, at the worse end of the "
        "95 % interval of their difference on the same questions, to become champion"
    )
    overrule: str | None = Field(
        min_length=1,
        description="Reason why this version becomes champion whatever the comparison says, if it "
        "passed the gate; it is recorded with the version",
    )

    @field_validator("name")
    @classmethod
    def _accepted_by_mlflow(cls, name: str) -> str:
        allowed = registrable(name)
        if name != allowed:
            raise ValueError(
                f"MLflow takes no / : . % or quotes in a model's name: set register.name={allowed}"
            )
        return name
