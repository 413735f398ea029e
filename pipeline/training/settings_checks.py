"""Checks of the fine-tuning settings against one another and the model. Imports nothing heavy."""

from pipeline.config.finetune import FinetuneConfig
from pipeline.core.errors import ConfigError
from pipeline.models.architecture import Shape


def check(settings: FinetuneConfig, shape: Shape, *, nodes: int = 1) -> None:
    """Refuse settings that contradict one another or the model, before NeMo is imported.

    nodes: machines that share the training.

    Raises:
        ConfigError: names the settings and what is allowed.
    """
    parallel = settings.parallel
    ranks = parallel.tensor * parallel.pipeline * parallel.context
    if parallel.processes % ranks:
        raise ConfigError(
            f"finetune.parallel: tensor × pipeline × context is {ranks}, and "
            f"finetune.parallel.processes={parallel.processes} is not a multiple of it"
        )
    if parallel.processes % nodes:
        raise ConfigError(
            f"finetune.parallel.processes={parallel.processes} must be a multiple of "
            f"launcher.nodes={nodes}: each machine has as many"
        )
    # Packs take the place of micro-batches.
    rows = 1 if settings.pack_length else settings.micro_batch_size
    step = rows * (parallel.processes // ranks)
    if settings.global_batch_size % step:
        raise ConfigError(
            f"finetune.global_batch_size={settings.global_batch_size} must be a multiple of "
            f"{'' if settings.pack_length else 'micro_batch_size × '}data-parallel ranks, which is "
            f"{step}"
        )
    if settings.pack_length and parallel.context > 1:
        raise ConfigError(
            f"finetune.pack_length={settings.pack_length} cannot be combined with "
            f"finetune.parallel.context={parallel.context}: set pack_length=null, or context to 1"
        )
    if settings.objective != "sft":
        for name, given, instead in (
            ("pack_length", settings.pack_length, "null"),
            ("parallel.context", parallel.context if parallel.context > 1 else None, "1"),
        ):
            if given is not None:
                raise ConfigError(
                    f"finetune.{name}={given} cannot be combined with "
                    f"finetune.objective={settings.objective}, whose loss is of whole answers: set "
                    f"finetune.{name}={instead}"
                )
    for name, whole in (
        ("attention heads", shape.heads),
        ("key-value heads", shape.kv_heads),
        ("vocabulary entries", shape.vocab),
    ):
        if whole % parallel.tensor:
            raise ConfigError(
                f"finetune.parallel.tensor={parallel.tensor} must divide the model's {whole} {name}"
            )
    if shape.layers % parallel.pipeline:
        raise ConfigError(
            f"finetune.parallel.pipeline={parallel.pipeline} must divide the model's "
            f"{shape.layers} layers"
        )
    if settings.warmup_steps >= settings.max_steps:
        raise ConfigError(
            f"finetune.warmup_steps={settings.warmup_steps} must be below "
            f"finetune.max_steps={settings.max_steps}"
        )
    if settings.min_learning_rate > settings.learning_rate:
        raise ConfigError(
            f"finetune.min_learning_rate={settings.min_learning_rate} must not be above "
            f"finetune.learning_rate={settings.learning_rate}"
        )
