"""Settings of a fine-tune, for tests that train or plan."""

from typing import Any

from pipeline.config.defaults import default_config
from pipeline.config.finetune import (
    AdapterConfig,
    EarlyStoppingConfig,
    FinetuneConfig,
    OptimizerConfig,
    ParallelConfig,
)

SECTIONS = {
    "parallel": ParallelConfig,
    "adapter": AdapterConfig,
    "optimizer": OptimizerConfig,
    "early_stopping": EarlyStoppingConfig,
}


def finetune_settings(start: FinetuneConfig | None = None, **changes: Any) -> FinetuneConfig:
    """Settings with changes by the fields' own names, those of its sections too.

    start: what is changed; the defaults of conf/finetune/lora.yaml if there is none.
    """
    start = start or default_config({"demo": None}).finetune
    inside = {
        section: {name: changes.pop(name) for name in kind.model_fields.keys() & changes.keys()}
        for section, kind in SECTIONS.items()
    }
    return start.but(**changes, **inside)


def adapter_settings(**changes: Any) -> AdapterConfig:
    """Settings of an adapter on every linear layer, with changes."""
    return finetune_settings(**changes).adapter
