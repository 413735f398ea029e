"""Settings of the engine that serves the model (conf/engine)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipeline.config.section import Batch, Rank, Section, Share, Tokens, choice


class SamplingConfig(Section):
    """How answers are sampled for requests that do not say it."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        description="Temperature of requests that give none; null is that of the base model's "
        "generation_config.json, or 0 (the likeliest token) if that names no sampling"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="Nucleus sampling of requests that give none; null is the base model's, or off"
    )
    top_k: Annotated[int, Field(ge=0, le=10**7)] | None = Field(
        description="Tokens to choose among; null is the base model's, or all; 0 is all"
    )
    min_p: Share | None = Field(
        description="Least share of the likeliest token's probability; null is the base model's"
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        description="Repetition penalty; null is the base model's, or none"
    )


class EngineConfig(Section):
    """The engine and what it is built for."""

    name: Annotated[str, choice("engine", "auto")] = Field(
        description="Engine that serves the model; auto takes the best one that can run here"
    )
    profile: str | None = Field(
        description="Profile of the engine, as stage=profiles lists it; null takes the best"
    )
    precision: Annotated[str, choice("engine", "auto", each="precisions")] = Field(
        description="Weights of onnxruntime; auto takes int8 if it answers as fp32 does, else fp32"
    )
    max_batch_size: Batch = Field(description="Answers that are generated at once")
    max_input_len: Tokens = Field(
        description="Tokens of a prompt; null: three quarters of max_seq_len"
    )
    max_seq_len: Tokens = Field(
        description="Tokens of a prompt and its answer together; null: 4,096, or the model's "
        "positions if fewer"
    )
    lora_rank: Rank = Field(
        description="Largest rank of LoRA adapters that can be added while it serves; 0 is none",
    )
    speculative: Literal["none", "prompt_lookup"] = Field(
        description="Speculative decoding of our own engines on a CPU: prompt_lookup drafts tokens "
        "from where the last ones stood before in prompt and answer"
    )
    speculative_tokens: Annotated[int, Field(ge=1, le=64)] = Field(
        description="Tokens of a draft at most"
    )
    sampling: SamplingConfig
    overrule: str | None = Field(
        min_length=1,
        description="Reason why an engine that its proof refuses is built all the same; it is "
        "recorded in the manifest and shown in the summary",
    )
    arguments: Mapping[str, Any] = Field(
        description="Further arguments of the engine's own, by its own names"
    )

    @field_validator("arguments")
    @classmethod
    def _check_reserved(cls, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check those that a profile is chosen by; the engine checks the others itself."""
        size, share = (
            arguments.get(name, 1) for name in ("tensor_parallel_size", "gpu_memory_utilization")
        )
        if type(size) is not int or not 1 <= size <= 1_024:
            raise ValueError("tensor_parallel_size must be a whole number of GPUs, from 1 to 1,024")
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise ValueError("gpu_memory_utilization must be above 0, at most 1")
        return arguments
