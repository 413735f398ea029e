"""Settings of the base model (conf/model)."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Form, Place, Section


class ModelConfig(Section):
    """The base model: a Hugging Face folder with config.json, safetensors and tokenizer files."""

    name: Annotated[str, Form(r"[\w.-]{1,200}", "letters, digits, _, . and - (200 at most)")] = (
        Field(
            description="Name of the model in tracking, in the registry and in the API",
        )
    )
    path: Place = Field(description="Folder of the Hugging Face checkpoint")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        description="Data type in which the tuned weights are saved"
    )
