"""The learning rate of each step: NeMo's schedulers for the settings, and LoRA+'s second rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo.lightning.pytorch.optim import lr_scheduler as nemo

from pipeline.config.finetune import FinetuneConfig
from pipeline.training.length import decay_of, warmup_of


def schedule(settings: FinetuneConfig) -> nemo.LRSchedulerModule:
    """NeMo's scheduler: a linear warm-up, and the curve that the settings name.

    Step i of a warm-up of w steps, counted from 0, has (i + 1) / (w + 1) of the peak, so that the
    first step is not lost.
    """
    steps = settings.max_steps
    assert steps is not None
    warmup = warmup_of(settings, steps)
    if settings.schedule == "cosine":
        return nemo.CosineAnnealingScheduler(
            max_steps=steps,
            warmup_steps=warmup,
            constant_steps=0,
            min_lr=settings.min_learning_rate,
        )
    if settings.schedule == "constant":
        return nemo.WarmupPolicyScheduler(max_steps=steps, warmup_steps=warmup)
    falling = decay_of(settings, steps) if settings.schedule == "wsd" else steps - warmup

    def share(part: int) -> float:
        return (part + 0.5) / steps  # NeMo multiplies by the steps again, and rounds down

    return nemo.WarmupHoldAnnealScheduler(
        max_steps=steps,
        warmup_ratio=share(warmup),
        hold_ratio=share(steps - warmup - falling),
        min_lr=settings.min_learning_rate,
    )


def plus_ratio(settings: FinetuneConfig) -> float:
    """LoRA+'s ratio of B's learning rate to A's; 1 for a full fine-tune."""
    return 1.0 if settings.method == "sft" else settings.adapter.lora_plus_ratio


def set_rates(groups: Sequence[dict[str, Any]], ratio: float) -> float:
    """Set the learning rate of B's parameters to `ratio` times the others', which is returned.

    NeMo's schedulers let every rate fall to the same minimum, so that the ratio would not hold.
    """
    rate = next(group["lr"] for group in groups if group["pre_lr_mult"] == 1)
    for group in groups:
        group["lr"] = rate * group["pre_lr_mult"]
    return float(rate)
