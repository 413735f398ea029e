"""An engine process around a model without weights, which dies where its folder says so.

Started by tests in place of pipeline.engines.process.worker, with the same arguments. Its model
answers with the sequence's `mix`; an adapter adds its number to each of the prompt's tokens. Where
its folder, or an adapter's that it has loaded, says so, it gives no answers any more.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed, Sampling
from pipeline.engines.batching.request import Request
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.engines.description import Description
from pipeline.engines.process import worker as engine_process
from pipeline.engines.registry import ENGINES
from tests.unit.serving.fake_models import ListModel, mix

SLOTS, MAX_SEQ_LEN = 4, 2000


class SlowModel(ListModel):
    """A step takes as long as a model's, so that answers are in progress on a busy machine too."""

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        time.sleep(0.02)
        return super().decode(ids, lengths)


class FakeEngine(BatchingEngine):
    """Answers by `mix`; its adapters are files that hold a number."""

    def __init__(self, folder: Path, max_queue: int) -> None:
        made = SlowModel if (folder / "slow").exists() else ListModel
        model = made(mix, slots=SLOTS, max_seq_len=MAX_SEQ_LEN)
        super().__init__(model, max_input_len=1000, max_queue=max_queue)
        self.features = frozenset({"adapters"})
        self._folder, self._numbers = folder, dict[str, int]()
        self._is_broken = False

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Request:
        if self._is_broken or (self._folder / "mute").exists():
            raise EngineFailed("no answers any more")
        if sampling.adapter:
            prompt = [token + self._numbers[sampling.adapter] for token in prompt]
            sampling = replace(sampling, adapter=None)
        return super().generate(prompt, sampling)

    async def add_adapter(self, name: str, folder: Path) -> None:
        if "." in name or (folder / "odd").exists():
            raise KeyError("module name can't contain a dot")
        try:
            self._numbers[name] = int((folder / "number").read_text())
        except OSError as error:
            raise ValueError(f"{folder} is no adapter") from error
        self._is_broken = (folder / "breaks").exists()

    async def remove_adapter(self, name: str) -> None:
        del self._numbers[name]

    def down(self) -> str | None:
        return "told so" if (self._folder / "down").exists() else None


def open_fake(folder: Path, description: Description, max_queue: int) -> Any:
    if (folder / "dies").exists():
        os._exit(3)
    if (folder / "refused").exists():
        raise DataError("the folder is refused")
    return FakeEngine(folder, max_queue)


if __name__ == "__main__":
    ENGINES.add(replace(ENGINES["hf"], name="made", open=open_fake))
    engine_process.main()
