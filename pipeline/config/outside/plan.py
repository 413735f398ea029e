"""Settings of stage=plan."""

from typing import Literal

from pydantic import Field

from pipeline.config.section import Ranks, Section


class PlanConfig(Section):
    """The hardware that stage=plan plans for, and what it prints."""

    gpu: Literal["a100", "h100", "h200", "l40s", "b200"] | None = Field(
        description="GPU to plan for; null plans for this machine"
    )
    gpus_per_node: Ranks = Field(description="GPUs of a machine with plan.gpu")
    format: Literal["table", "json"] = Field(description="Form of the output")
