"""Settings of a fine-tune, for tests that train or plan."""

from typing import Any

from pipeline.config.defaults import default_config
from pipeline.config.finetune import AdapterConfig, FinetuneConfig, ParallelConfig


def finetune_settings(start: FinetuneConfig | None = None, **changes: Any) -> FinetuneConfig:
    """Settings with changes by the fields' own names, those of parallel and adapter too.

    start: what is changed; the defaults of conf/finetune/lora.yaml if there is none.
    """
    start = start or default_config({"demo": None}).finetune
    inside = {
        section: {name: changes.pop(name) for name in kind.model_fields.keys() & changes.keys()}
        for section, kind in (("parallel", ParallelConfig), ("adapter", AdapterConfig))
    }
    return start.but(**changes, **inside)
