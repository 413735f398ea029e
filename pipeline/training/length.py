"""How long a run is: its steps, the epochs that they are, and the steps of its warm-up."""

import math
from dataclasses import dataclass

from pipeline.config.finetune import FinetuneConfig

FEW, MANY = 3, 10  # epochs: as many as published recipes take at most, and more than is usual
ROUNDING = 1e-9  # of a product of floats, which must not become a step more


@dataclass(frozen=True)
class Length:
    """Steps of `batch` rows each, over `rows` rows of training data.

    >>> str(Length(steps=500, batch=64, rows=1000))
    '500 steps of 64 rows = 32 epochs of 1,000 rows'
    """

    steps: int
    batch: int
    rows: int

    @property
    def epochs(self) -> float:
        return self.epoch(self.steps)

    def epoch(self, step: int) -> float:
        """Passes over the rows after a number of steps."""
        return step * self.batch / self.rows

    def __str__(self) -> str:
        epochs = in_words(self.epochs)
        return (
            f"{self.steps:,} {plural('step', self.steps)} of {self.batch:,} "
            f"{plural('row', self.batch)} = {epochs} "
            f"{'epoch' if epochs == '1' else 'epochs'} of "
            f"{self.rows:,} {plural('row', self.rows)}"
        )


def in_words(epochs: float) -> str:
    """32, 1.6 or 0.016."""
    if epochs >= 10:
        return f"{epochs:,.0f}"
    return f"{epochs:.1f}".removesuffix(".0") if epochs >= 1 else f"{epochs:.2g}"


def plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def steps_of(settings: FinetuneConfig, rows: int | None) -> int | None:
    """Optimizer steps: max_steps or those of the epochs, whichever end first.

    rows: of training; None: not known yet. Returns None if epochs decide and they are not.
    """
    if settings.epochs is None:
        return settings.max_steps
    if rows is None:
        return None
    by_epochs = math.ceil(settings.epochs * rows / settings.global_batch_size - ROUNDING)
    return min(max(1, by_epochs), settings.max_steps or by_epochs)


def ends_first(settings: FinetuneConfig, rows: int) -> str:
    """Which of max_steps and epochs ends the run, if both are given; a part of a sentence."""
    if settings.epochs is None or settings.max_steps is None:
        return ""
    steps = steps_of(settings, rows)
    first, other = f"max_steps={settings.max_steps}", f"epochs={settings.epochs:g}"
    if steps != settings.max_steps:
        first, other = other, first
    return f": finetune.{first} ends it before finetune.{other}"


def warmup_of(settings: FinetuneConfig, steps: int) -> int:
    """Steps in which the learning rate rises."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return min(steps - 1, math.ceil(settings.warmup_share * steps - ROUNDING))


def decay_of(settings: FinetuneConfig, steps: int) -> int:
    """Steps at the end of schedule=wsd in which the learning rate falls."""
    return max(1, round(settings.decay_share * steps))


def resolved(settings: FinetuneConfig, rows: int) -> FinetuneConfig:
    """The same settings with max_steps and warmup_steps as numbers, and without epochs."""
    steps = steps_of(settings, rows)
    assert steps is not None
    return settings.but(max_steps=steps, epochs=None, warmup_steps=warmup_of(settings, steps))
