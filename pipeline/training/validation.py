"""What a run's validation losses decide: when it ends early, and which step's weights are kept.

Each answer is a function of the loss curve, which every checkpoint holds. So a run that was killed
decides as it would have.
"""

from collections.abc import Sequence

from pipeline.config.finetune import EarlyStoppingConfig, FinetuneConfig
from pipeline.training.job import Point
from pipeline.training.length import plural


def best(curve: Sequence[Point]) -> Point | None:
    """The point of the lowest validation loss, the earliest of equal ones; None: no validation."""
    found: Point | None = None
    for point in curve:
        if point.validation_loss is not None and (
            found is None or point.validation_loss < (found.validation_loss or 0.0)
        ):
            found = point
    return found


def validations_without_improvement(curve: Sequence[Point], min_improvement: float) -> int:
    """Validations since the last one whose loss was lower than all before by `min_improvement`.

    What improves by less does not count, and does not lower the mark either: many small ones do
    not keep a run alive, unless together they are an improvement.
    """
    mark, waited = float("inf"), 0
    for point in curve:
        if point.validation_loss is None:
            continue
        if point.validation_loss < mark - min_improvement:
            mark, waited = point.validation_loss, 0
        else:
            waited += 1
    return waited


def ends_early(settings: EarlyStoppingConfig, curve: Sequence[Point]) -> bool:
    """Whether training ends after the last point of the curve."""
    if settings.patience is None:
        return False
    waited = validations_without_improvement(curve, settings.min_improvement)
    return waited >= settings.patience


def kept(settings: FinetuneConfig, curve: Sequence[Point]) -> Point:
    """The point whose weights are the result."""
    return (settings.keep == "best" and best(curve)) or curve[-1]


def why_kept(settings: FinetuneConfig, curve: Sequence[Point], steps: int) -> str:
    """Which step was kept, and why, in a line.

    steps: that the run would have had.
    """
    point, last = kept(settings, curve), curve[-1].step
    said = f"step {point.step:,} of {steps:,} was kept: "
    if settings.keep == "best" and point.validation_loss is not None:
        said += f"its validation loss, {point.validation_loss:.4f}, is the lowest"
    else:
        said += "it is the last"
    if last < steps:
        patience = settings.early_stopping.patience or 0
        least = settings.early_stopping.min_improvement
        by = f" by {least:g}" if least else ""
        said += (
            f"; training ended early at step {last:,}, as {patience:,} "
            f"{plural('validation', patience)} did not improve the loss{by}"
        )
    return said
