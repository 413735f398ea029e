"""Settings of stage=finetune (conf/finetune)."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import (
    Batch,
    Count,
    Processes,
    Ranks,
    Rate,
    Section,
)

# Names of the model's layers and groups of them; training/adapter_targets.py knows which exist.
LayerName = Annotated[str, Field(min_length=1, max_length=200)]


class AdapterConfig(Section):
    """LoRA (arXiv:2106.09685) or DoRA (arXiv:2402.09353) on the linear layers of a model."""

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
    target_modules: tuple[LayerName, ...] = Field(
        min_length=1,
        max_length=64,
        description="Layers with an adapter: names as q_proj, or attention, mlp, all-linear",
    )
    rslora: bool = Field(
        description="Scale by alpha / sqrt(rank) in place of alpha / rank (arXiv:2312.03732)"
    )
    lora_plus_ratio: float = Field(
        ge=1,
        le=1_000,
        description="LoRA+: the learning rate of B, as a multiple of A's (arXiv:2402.12354)",
    )


class OptimizerConfig(Section):
    """AdamW (arXiv:1711.05101)."""

    beta1: float = Field(ge=0, lt=1, description="Decay of the gradients' running mean")
    beta2: float = Field(ge=0, lt=1, description="Decay of the squared gradients' running mean")
    eps: float = Field(
        ge=1e-20, le=1e-2, description="Added to the square root that a step is divided by"
    )


class EarlyStoppingConfig(Section):
    """The end of a run whose validation loss no longer falls."""

    patience: int | None = Field(
        ge=1,
        le=10**6,
        description="Validations without an improvement after which training ends; null: never",
    )
    min_improvement: float = Field(
        ge=0,
        le=100,
        description="Nats by which a validation loss must be below the best one to improve it",
    )


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
    max_steps: Count | None = Field(
        description="Optimizer steps; null: as many as finetune.epochs takes, or 500"
    )
    epochs: float | None = Field(
        gt=0,
        le=10**6,
        description="Passes over the training rows; beside max_steps, what ends first counts",
    )
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
    recompute: Literal["none", "selective", "full"] = Field(
        description="Activations that are computed again in the backward pass, to save memory: "
        "none, those of the feed-forward part and attention's scores, or whole layers"
    )
    learning_rate: Rate = Field(
        description="Peak learning rate; null: by the model's size, 5e-4 to 1e-4 (LoRA), "
        "1e-4 to 5e-6 (sft)"
    )
    min_learning_rate: float = Field(
        ge=0,
        le=1,
        description="Learning rate at the end, which it falls to; null: a tenth of the peak",
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        description="Curve of the learning rate after the warm-up; wsd: constant, then a linear "
        "fall (arXiv:2404.06395)"
    )
    warmup_steps: int | None = Field(
        ge=0,
        le=10**9,
        description="Steps in which the learning rate rises linearly to its peak; null: by "
        "warmup_share",
    )
    warmup_share: float = Field(
        ge=0, lt=1, description="Share of the steps in which the learning rate rises"
    )
    decay_share: float = Field(
        gt=0,
        le=1,
        description="Share of the steps, at the end, in which schedule=wsd falls",
    )
    optimizer: OptimizerConfig
    weight_decay: float = Field(ge=0, le=1, description="Weight decay of AdamW")
    clip_grad: float = Field(
        ge=0, le=1e6, description="Largest norm of the gradient; 0 switches clipping off"
    )
    validate_every: Count = Field(description="Steps between validations")
    early_stopping: EarlyStoppingConfig
    keep: Literal["last", "best"] = Field(
        description="Weights that are kept: of the last step, or of the lowest validation loss"
    )
    checkpoint_every: Count = Field(
        description="Steps between the checkpoints from which a stopped run resumes"
    )
    patches: Literal["all", "none"] = Field(
        description="Replacements of library code (docs/patches.md); none keeps the required ones"
    )
