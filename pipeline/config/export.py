"""Settings of stage=export."""

from pydantic import Field

from pipeline.config.section import Positive, Section


class ExportConfig(Section):
    """The GPUs that the TensorRT-LLM checkpoint is split for."""

    tensor_parallel: Positive = Field(description="Tensor-parallel size of the served model")
    pipeline_parallel: Positive = Field(description="Pipeline-parallel size of the served model")
