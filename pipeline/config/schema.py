"""Types and bounds of the configuration. Defaults live in conf/, never here.

Hydra composes conf/ and the command line into one tree; `load` turns that into these frozen models
or says which field is wrong and what is allowed. Imports nothing heavy.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.config.launchers import Launcher
from pipeline.config.mlflow import RegisterConfig, TrackingConfig, registrable
from pipeline.config.section import (
    Place,
    Positive,
    Rate,
    Seconds,
    Section,
    Share,
    explain,
)
from pipeline.core.errors import ConfigError


class ModelConfig(Section):
    """The base model: an HF folder (config.json, safetensors, tokenizer files)."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    path: Place
    dtype: Literal["bfloat16", "float16", "float32"]


class DataConfig(Section):
    """Files to read, globs below `folder`; `sources` are plain texts with `## heading` sections.

    recorded: folder below it with snapshots of served conversations (pipeline/data/snapshots.py).
    """

    folder: Place
    train: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)
    sources: tuple[str, ...]
    recorded: str = Field(min_length=1)


class PrepareConfig(Section):
    """How rows become a dataset."""

    max_length: int = Field(ge=8, description="tokens of a rendered conversation")
    validation_share: float = Field(ge=0, le=0.5, description="of the training rows")
    # Below 0.9 the search for candidates would miss pairs (pipeline/data/deduplication.py).
    near_duplicate_threshold: float = Field(ge=0.9, le=1, description="similarity that drops a row")
    leak_threshold: float = Field(ge=0.9, le=1, description="the same, to a test question")
    max_reject_share: Share = Field(description="fails when more of the rows are refused")
    samples: int = Field(ge=0, description="rendered conversations to show")


class PretrainConfig(Section):
    """A tiny base model from nothing, with its tokenizer."""

    generator: Place
    vocabulary: int = Field(ge=300)
    hidden_size: Positive
    layers: Positive
    heads: Positive
    key_value_heads: Positive
    ffn_size: Positive
    max_positions: Positive
    steps: Positive
    batch_size: Positive
    micro_batch_size: Positive
    sequence_length: Positive
    learning_rate: Rate
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0, le=1)
    conversation_share: Share
    corpus_tokens: Positive = Field(
        description="different tokens to make; steps beyond see them again"
    )
    checkpoint_every: Positive


class AdapterConfig(Section):
    """LoRA (arXiv:2106.09685) or DoRA (arXiv:2402.09353) on every linear layer."""

    rank: Positive
    alpha: Positive
    dropout: float = Field(ge=0, lt=1)


class ParallelConfig(Section):
    """Ranks a model is spread over; data parallel takes what is left of the processes."""

    processes: Positive = Field(description="of all machines, one a GPU")
    tensor: Positive
    pipeline: Positive
    context: Positive


class FinetuneConfig(Section):
    """Supervised fine-tuning on the assistant's tokens."""

    method: Literal["lora", "dora", "sft"]
    adapter: AdapterConfig
    parallel: ParallelConfig
    max_steps: Positive
    global_batch_size: Positive
    micro_batch_size: Positive
    pack_length: int | None = Field(
        ge=8, description="tokens of rows put end to end, in place of micro-batches of padded rows"
    )
    precision: Literal["bf16", "fp8"] = Field(description="of matrix products on a GPU")
    learning_rate: Rate
    min_learning_rate: float = Field(ge=0, le=1)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0, le=1)
    clip_grad: float = Field(ge=0, description="0 switches clipping off")
    validate_every: Positive
    checkpoint_every: Positive


QuantizationFormat = Literal["fp8", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4", "none"]


class CalibrationConfig(Section):
    rows: Positive
    batch_size: Positive
    max_length: int = Field(ge=8)


class QuantizeConfig(Section):
    """Post-training quantization with ModelOpt."""

    format: QuantizationFormat
    compare: tuple[QuantizationFormat, ...] = Field(description="evaluated beside it")
    kv_cache: Literal["none", "fp8"]
    exclude: tuple[str, ...] = Field(description="parts of names of modules to leave as is")
    calibration: CalibrationConfig

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if "lm_head" not in self.exclude:
            raise ValueError("exclude must name lm_head: no runtime here takes it quantized")
        if self.kv_cache != "none" and "none" in (self.format, *self.compare):
            raise ValueError("format none leaves the key-value cache as it is: set kv_cache=none")
        return self


class MinExactMatch(Section):
    """Exact match of the tuned model, by what was trained."""

    adapter: Share = Field(description="LoRA or DoRA")
    full: Share = Field(description="every weight")


class GateConfig(Section):
    """What the tuned model and the format that is exported must reach, or the run fails."""

    min_exact_match: MinExactMatch
    max_drop: Mapping[QuantizationFormat, Share] = Field(description="exact match lost to a format")

    @model_validator(mode="after")
    def _every_format(self) -> Self:
        if missing := set(get_args(QuantizationFormat)) - self.max_drop.keys():
            raise ValueError(f"max_drop has no bound for {', '.join(sorted(missing))}")
        return self


class EvaluateConfig(Section):
    max_new_tokens: Positive
    batch_size: Positive
    bootstrap_samples: int = Field(ge=100)
    gate: GateConfig


class ExportConfig(Section):
    """The TensorRT-LLM checkpoint's ranks."""

    tensor_parallel: Positive
    pipeline_parallel: Positive


class EngineConfig(Section):
    """The runtime and what it is built for."""

    name: Literal["auto", "onnxruntime", "hf", "trtllm", "vllm", "remote"]
    profile: str | None = Field(description="one that stage=profiles shows; null: the best")
    precision: Literal["auto", "fp32", "int8", "int4"]
    max_batch_size: Positive
    max_input_len: Positive
    max_seq_len: Positive
    lora_rank: int = Field(ge=0, description="of adapters to be added while it serves; 0: none")
    arguments: Mapping[str, Any] = Field(description="more of the runtime's own, as it names them")

    @field_validator("arguments")
    @classmethod
    def _reckoned_with(cls, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those that a profile is chosen by; the runtime checks the others itself."""
        size, share = (
            arguments.get(name, 1) for name in ("tensor_parallel_size", "gpu_memory_utilization")
        )
        if type(size) is not int or size < 1:
            raise ValueError("tensor_parallel_size must be a whole number of GPUs")
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise ValueError("gpu_memory_utilization must be above 0, at most 1")
        return arguments


class ServeConfig(Section):
    """Sizes in bytes, times in seconds."""

    host: str
    port: int = Field(ge=0, le=65535, description="0 takes a free one")
    version: int | str | None = Field(description="number or alias in the registry")
    max_queue: Positive
    keys_file: Place | None
    max_connections: Positive
    max_header_bytes: int = Field(ge=1024)
    max_body_bytes: int = Field(ge=1024)
    header_timeout: Seconds
    body_timeout: Seconds
    request_timeout: Seconds
    stalled_timeout: Seconds
    keep_alive_timeout: Positive
    drain_delay: float = Field(ge=0)
    log_content: bool
    record: Place | None
    adapters: Place | None


class BenchmarkConfig(Section):
    concurrency: tuple[Positive, ...] = Field(min_length=1)
    requests: Positive
    max_tokens: Positive


class RetrainConfig(Section):
    """When to run the graph again, on what was recorded."""

    recordings: Place | None
    min_new: Positive = Field(description="conversations")
    every: Seconds | None = Field(description="between looks; null looks once")
    schedule: str | None = Field(pattern=r"^(@[a-z]+|\S+( \S+){4})$", description="cron's")


class ProfilesConfig(Section):
    """What `stage=profiles` prints."""

    format: Literal["table", "json"]


class PlanConfig(Section):
    """What `stage=plan` plans for. `gpu` null: this machine."""

    gpu: Literal["a100", "h100", "h200", "l40s", "b200"] | None
    gpus_per_node: Positive
    format: Literal["table", "json"]


class Config(Section):
    """The whole configuration of a run."""

    seed: int = Field(ge=0, lt=2**32)
    artifacts: Place
    model: ModelConfig
    data: DataConfig
    prepare: PrepareConfig
    pretrain: PretrainConfig
    finetune: FinetuneConfig
    quantize: QuantizeConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    engine: EngineConfig
    serve: ServeConfig
    benchmark: BenchmarkConfig
    register_: RegisterConfig = Field(alias="register")
    retrain: RetrainConfig
    profiles: ProfilesConfig
    plan: PlanConfig
    launcher: Launcher
    tracking: TrackingConfig

    @model_validator(mode="before")
    @classmethod
    def _register_by_the_models_name(cls, tree: Any) -> Any:
        """The default, a model's name, may hold dots, as in llama-3.1, which MLflow refuses."""
        model, register = tree["model"], tree["register"]
        if register["name"] != model["name"] or not isinstance(model["name"], str):
            return tree
        return {**tree, "register": {**register, "name": registrable(model["name"])}}


def load(tree: Mapping[str, Any]) -> Config:
    """Validate a composed configuration.

    Raises:
        ConfigError: names each wrong field, what it holds and what is allowed.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [explain(e) for e in error.errors(include_url=False)]
        raise ConfigError("; ".join(lines)) from None
