"""Settings of stage=finetune (conf/finetune), and what each objective needs.

Defaults of the objectives are those of the papers. DPO (arXiv:2305.18290): beta 0.1. KTO
(arXiv:2402.01306): beta 0.1, both weights 1. SimPO (arXiv:2405.14734): beta 2.0 and gamma 1.0 for
Llama 3 8B. ORPO (arXiv:2403.07691): lambda 0.1 for Mistral 7B; its code and others name it beta.
"""

from dataclasses import dataclass
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
# What a row of the dataset teaches: one good answer; a better and a worse answer; or one answer and
# whether it is a good one.
RowKind = Literal["answers", "pairs", "labels"]
PAIR_FIELDS, LABEL_FIELDS = "prompt, chosen and rejected", "prompt, completion and label"


@dataclass(frozen=True)
class Objective:
    """A loss, and what it needs.

    rows: kind of the dataset's rows. settings: those of finetune.preference that it reads.
    compares: whether it compares with the model as it was before training (the reference).
    beta: default of finetune.preference.beta, if it reads that. rate: share of the learning rate
    that supervised fine-tuning has by default.
    """

    rows: RowKind
    settings: tuple[str, ...] = ()
    compares: bool = False
    beta: float | None = None
    rate: float = 1.0

    @property
    def sides(self) -> int:
        """Sequences of a row that a step computes gradients of."""
        return 2 if self.rows == "pairs" else 1


# Rates: Tülu 3 (arXiv:2411.15124) takes 5e-6 for supervised fine-tuning of 8 B and 5e-7 for DPO,
# SmolLM2 3e-4 and 1e-6, the alignment handbook 2e-4 and 5e-6 with QLoRA; ORPO's paper 8e-6.
OBJECTIVES: dict[str, Objective] = {
    "sft": Objective("answers"),
    "dpo": Objective("pairs", ("beta", "label_smoothing"), compares=True, beta=0.1, rate=0.05),
    "orpo": Objective("pairs", ("odds_weight",), rate=0.5),
    "kto": Objective(
        "labels",
        ("beta", "desirable_weight", "undesirable_weight"),
        compares=True,
        beta=0.1,
        rate=0.05,
    ),
    "simpo": Objective("pairs", ("beta", "gamma"), beta=2.0, rate=0.05),
}


def objectives_of(kind: RowKind) -> str:
    """The objectives that learn from such rows, for messages."""
    return " or ".join(name for name, one in OBJECTIVES.items() if one.rows == kind)


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
    modules_to_save: tuple[Literal["embed_tokens", "lm_head"], ...] = Field(
        max_length=2,
        description="Modules beside the adapter that are trained whole: the embedding "
        "(embed_tokens), the output layer (lm_head)",
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


class PreferenceConfig(Section):
    """What the preference objectives weigh. An objective reads the settings that its record names
    (pipeline/config/finetune.py)."""

    beta: float | None = Field(
        gt=0,
        le=100,
        description="Weight of the log-probabilities (dpo, kto, simpo): larger keeps the model "
        "nearer to the reference; null: 0.1 (dpo, kto) or 2.0 (simpo), as in their papers",
    )
    label_smoothing: float = Field(
        ge=0, lt=0.5, description="Share of pairs whose sides may be the wrong way round (dpo)"
    )
    desirable_weight: float = Field(
        ge=0, le=1_000, description="Weight of the answers with label true (kto)"
    )
    undesirable_weight: float = Field(
        ge=0, le=1_000, description="Weight of the answers with label false (kto)"
    )
    gamma: float = Field(
        ge=0, le=100, description="Reward by which the better answer should lead (simpo)"
    )
    odds_weight: float = Field(
        ge=0, le=1_000, description="Lambda, the weight of the odds ratio beside the loss (orpo)"
    )


class ParallelConfig(Section):
    """GPUs that a model is spread over. Data parallel takes what is left of the processes."""

    processes: Processes = Field(description="Training processes of all machines, one per GPU")
    tensor: Ranks = Field(description="Tensor-parallel size")
    pipeline: Ranks = Field(description="Pipeline-parallel size")
    context: Ranks = Field(description="Context-parallel size")


class FinetuneConfig(Section):
    """Fine-tuning on the assistant's tokens."""

    objective: Literal["sft", "dpo", "orpo", "kto", "simpo"] = Field(
        description="What training minimises: the loss of good answers (sft), of pairs of a better "
        "and a worse answer (dpo, orpo, simpo), or of answers labelled good or bad (kto)"
    )
    preference: PreferenceConfig
    method: Literal["lora", "dora", "sft"] = Field(
        description="What is trained: a LoRA or DoRA adapter, or every weight (sft)"
    )
    adapter: AdapterConfig
    parallel: ParallelConfig
    max_steps: Count | None = Field(
        description="Optimizer steps; null: as many as finetune.epochs takes, or 500 (sft)"
    )
    epochs: float | None = Field(
        gt=0,
        le=10**6,
        description="Passes over the training rows; beside max_steps, what ends first counts; "
        "null: max_steps decides, or 2 for preference objectives",
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
        description="Peak learning rate; null: by the model's size, 5e-3 to 1e-4 (LoRA), "
        "2e-3 to 5e-6 (sft); a twentieth for dpo, kto and simpo, half for orpo"
    )
    min_learning_rate: float = Field(
        ge=0,
        le=1,
        description="Learning rate at the end, which it falls to; null: a tenth of the peak, "
        "or a twentieth for models of a hidden size to 256",
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
