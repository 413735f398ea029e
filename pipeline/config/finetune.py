"""Settings of stage=finetune (conf/finetune)."""

from typing import Literal

from pydantic import Field

from pipeline.config.section import (
    Batch,
    Count,
    Processes,
    Ranks,
    Rate,
    Section,
)


class AdapterConfig(Section):
    """LoRA (arXiv:2106.09685) or DoRA (arXiv:2402.09353) on every linear layer."""

    rank: int = Field(
        ge=1,
        le=8_192,
        description="Rank of the LoRA adapter; 16 suits most models of 1 to 70 B parameters",
    )
    alpha: int = Field(
        ge=1,
        le=65_536,
        description="LoRA scaling: updates are multiplied by alpha / rank, usually 2",
    )
    dropout: float = Field(ge=0, lt=1, description="Dropout of the LoRA adapter's input")


class ParallelConfig(Section):
    """GPUs that a model is spread over. Data parallel takes what is left of the processes."""

    processes: Processes = Field(description="Training processes of all machines, one per GPU")
    tensor: Ranks = Field(description="Tensor-parallel size")
    pipeline: Ranks = Field(description="Pipeline-parallel size")
    context: Ranks = Field(description="Context-parallel size")


class FinetuneConfig(Section):
    """Supervised fine-tuning on the assistant's tokens."""

    method: Literal["lora", "dora", "sft"] = Field(
        description="What is trained: a LoRA or DoRA adapter, or every weight (sft)"
    )
    adapter: AdapterConfig
    parallel: ParallelConfig
    max_steps: Count = Field(description="Optimizer steps")
    global_batch_size: Count = Field(
        description="Conversations of an optimizer step, over all processes"
    )
    micro_batch_size: Batch = Field(
        description="Conversations that a process computes at once; lower it when memory runs out"
    )
    pack_length: int | None = Field(
        ge=8,
        le=2**24,
        description="Tokens of a pack of conversations; null pads them to one length instead",
    )
    precision: Literal["bf16", "fp8"] = Field(
        description="Precision of matrix products on a GPU; a CPU computes in float32"
    )
    learning_rate: Rate = Field(
        description="Peak learning rate; null: by the model's size, 5e-4 to 1e-4 (LoRA), "
        "1e-4 to 5e-6 (sft)"
    )
    min_learning_rate: float = Field(
        ge=0,
        le=1,
        description="Learning rate at the end, which a cosine falls to; null: a tenth of the peak",
    )
    warmup_steps: int = Field(
        ge=0, le=10**9, description="Steps in which the learning rate rises linearly to its peak"
    )
    weight_decay: float = Field(ge=0, le=1, description="Weight decay of AdamW")
    clip_grad: float = Field(
        ge=0, le=1e6, description="Largest norm of the gradient; 0 switches clipping off"
    )
    validate_every: Count = Field(description="Steps between validations")
    checkpoint_every: Count = Field(
        description="Steps between the checkpoints from which a stopped run resumes"
    )
    patches: Literal["all", "none"] = Field(
        description="Replacements of library code (docs/patches.md); none keeps the required ones"
    )
