"""Functions that files of conf/ may call beside OmegaConf's own.

    max_steps: ${supervised:170}        # null with a preference objective
    global_batch_size: ${supervised:32,8}

`register` makes them known to OmegaConf, for Hydra's composition and for that of defaults.py.
"""

from typing import Any


def register() -> None:
    """Make the functions known; a second call changes nothing."""
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("supervised"):
        OmegaConf.register_new_resolver("supervised", _supervised)


def _supervised(value: Any, otherwise: Any = None, *, _root_: Any) -> Any:
    """A value for supervised fine-tuning, and another one for preference objectives."""
    return value if _root_.finetune.objective == "sft" else otherwise
