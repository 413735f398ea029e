"""Settings of stage=export."""

from pydantic import Field

from pipeline.config.section import Ranks, Section


class ExportConfig(Section):
    """The GPUs that the TensorRT-LLM checkpoint is split for."""

    tensor_parallel: Ranks = Field(description="Tensor-parallel size of the served model")
    pipeline_parallel: Ranks = Field(description="Pipeline-parallel size of the served model")
