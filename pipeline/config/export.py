"""Settings of stage=export."""

from pydantic import Field

from pipeline.config.section import Ranks, Section


class ExportConfig(Section):
    """The GPUs that the TensorRT-LLM checkpoint is split for."""

    tensor_parallel: Ranks = Field(description="Tensor-parallel size of the served model")
    pipeline_parallel: Ranks = Field(description="Pipeline-parallel size of the served model")
    overrule: str | None = Field(
        min_length=1,
        description="Reason why weights that differ from their source by more than rounding are "
        "exported all the same; it is recorded in the manifest and shown in the summary",
    )
