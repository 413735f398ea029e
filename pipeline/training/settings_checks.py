"""Checks of the fine-tuning settings against one another and the model. Imports nothing heavy."""

from pipeline.config.finetune import FinetuneConfig
from pipeline.core.errors import ConfigError
from pipeline.models.architecture import Shape
from pipeline.models.families import FAMILIES
from pipeline.training.adapter_targets import saved_modules, targets
from pipeline.training.length import decay_of, steps_of, warmup_of

MOST_STEPS = 10**9  # as finetune.max_steps


def check(
    settings: FinetuneConfig, shape: Shape, *, nodes: int = 1, rows: int | None = None
) -> None:
    """Refuse settings that contradict one another or the model, before NeMo is imported.

    nodes: machines that share the training. rows: of training; None: not prepared yet.

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
    batch = 1 if settings.pack_length else settings.micro_batch_size
    step = batch * (parallel.processes // ranks)
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
    _check_attention(settings, shape)
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
    ):
        if whole % parallel.tensor:
            raise ConfigError(
                f"finetune.parallel.tensor={parallel.tensor} must divide the model's {whole} {name}"
            )
    if shape.experts and parallel.tensor > 1:
        raise ConfigError(
            f"finetune.parallel.tensor={parallel.tensor} does not take models with experts yet "
            "(our limit): set it to 1, and use finetune.parallel.pipeline or more processes"
        )
    if shape.layers % parallel.pipeline:
        raise ConfigError(
            f"finetune.parallel.pipeline={parallel.pipeline} must divide the model's "
            f"{shape.layers} layers"
        )
    if settings.method != "sft":
        targets(settings.adapter.target_modules, shape.every_layer)
        _check_saved(settings, shape)
    if settings.recompute != "none" and shape.layers == 1:
        raise ConfigError(
            f"finetune.recompute={settings.recompute} changes nothing: the model has one layer, "
            "whose activations are all there when its gradient is computed: set it to none"
        )
    steps = steps_of(settings, rows)
    if steps is not None:
        _check_length(settings, steps)
    if settings.min_learning_rate > settings.learning_rate:
        raise ConfigError(
            f"finetune.min_learning_rate={settings.min_learning_rate} must not be above "
            f"finetune.learning_rate={settings.learning_rate}"
        )


def _check_saved(settings: FinetuneConfig, shape: Shape) -> None:
    """Refuse modules that cannot be trained beside an adapter."""
    if not saved_modules(settings.adapter.modules_to_save, tied=shape.tied):
        return
    if settings.objective in ("dpo", "kto"):
        raise ConfigError(
            f"finetune.adapter.modules_to_save cannot be combined with finetune.objective="
            f"{settings.objective}: its reference is the base without the adapter, which would be "
            "trained, too: set modules_to_save=[], or the objective to orpo or simpo"
        )
    if settings.parallel.pipeline > 1 and shape.tied:
        raise ConfigError(
            f"finetune.adapter.modules_to_save cannot be combined with finetune.parallel.pipeline="
            f"{settings.parallel.pipeline} where the output layer is the embedding, of which the "
            "first and the last rank hold a copy each: set pipeline to 1"
        )


def _check_attention(settings: FinetuneConfig, shape: Shape) -> None:
    """Refuse what the attention of some families cannot do."""
    title, parallel = FAMILIES[shape.family].title, settings.parallel
    if shape.attention_cap is not None and settings.pack_length:
        raise ConfigError(
            f"finetune.pack_length={settings.pack_length}: Megatron-Core's attention that caps "
            f"scores, as {title}'s, takes no packed rows: set pack_length=null"
        )
    if parallel.context > 1 and (shape.attention_cap is not None or shape.window_rope_theta):
        raise ConfigError(
            f"finetune.parallel.context={parallel.context}: NeMo has no context parallelism for "
            f"{title}: set it to 1"
        )
    rope = shape.rope_scaling
    original = rope.original_max_positions if rope and rope.kind == "longrope" else None
    if original and settings.pack_length and settings.pack_length > original:
        raise ConfigError(
            f"finetune.pack_length={settings.pack_length}: beyond {original} tokens longrope has "
            "other frequencies for the whole pack than for its rows: set pack_length to "
            f"{original} at most, or to null"
        )


def _check_length(settings: FinetuneConfig, steps: int) -> None:
    """Refuse a schedule that is longer than the run, and validations that decide nothing."""
    run = f"the run has {steps} steps (finetune.max_steps, finetune.epochs)"
    if steps > MOST_STEPS:
        raise ConfigError(
            f"finetune.epochs={settings.epochs:g} takes {steps:.3g} steps, and {MOST_STEPS:.0e} "
            "are the most: lower it"
        )
    warmup = warmup_of(settings, steps)
    if warmup >= steps:
        raise ConfigError(f"finetune.warmup_steps={warmup} must be below {steps}: {run}")
    if settings.schedule == "wsd" and warmup + decay_of(settings, steps) > steps:
        raise ConfigError(
            f"finetune.decay_share={settings.decay_share:g} is {decay_of(settings, steps)} steps, "
            f"and {steps - warmup} are left after the warm-up: lower it, or the warm-up"
        )
    before_end = (steps - 1) // settings.validate_every
    patience = settings.early_stopping.patience
    if patience is not None and before_end <= patience:
        raise ConfigError(
            f"finetune.early_stopping.patience={patience} cannot end a run that is validated "
            f"{before_end} times before its end: lower it, or finetune.validate_every (now "
            f"{settings.validate_every}); {run}"
        )
    if settings.keep == "best" and not before_end:
        raise ConfigError(
            f"finetune.keep=best has no effect, as only the last step is validated: lower "
            f"finetune.validate_every (now {settings.validate_every}); {run}"
        )


def check_validation_rows(settings: FinetuneConfig, rows: int) -> None:
    """Refuse settings that need a validation loss where there is none.

    rows: of validation.

    Raises:
        ConfigError: names the setting.
    """
    if rows:
        return
    for setting, given in (
        ("finetune.early_stopping.patience", settings.early_stopping.patience),
        ("finetune.keep", "best" if settings.keep == "best" else None),
    ):
        if given is not None:
            raise ConfigError(
                f"{setting}={given} needs a validation loss, and there are no validation rows: "
                "raise prepare.validation_share and run stage=prepare again"
            )
