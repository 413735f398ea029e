"""NeMo's own description of a trained model beside its weights: `context/`, for NeMo's tools.

It names classes, functions and files of pickles, so nothing here ever reads it. `hf/` and
adapter.json say what this pipeline needs.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pipeline.core.monkeypatch import replaced
from pipeline.training.nemo.patches.records import CONTEXT_NAMES

if TYPE_CHECKING:
    from nemo.lightning import Trainer


def write_context(trainer: Trainer, folder: Path) -> None:
    """Write folder/context, the same files for the same model and trainer."""
    from nemo.lightning.io.pl import TrainerContext

    numbers = count(1)
    names = SimpleNamespace(uuid4=lambda: f"object-{next(numbers)}")
    with replaced(CONTEXT_NAMES.by(uuid=names)):
        TrainerContext.from_trainer(trainer).io_dump(folder / "context", yaml_attrs=["model"])
