"""The weights of the lowest validation loss so far, on disk beside a run's checkpoints."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class BestWeights:
    """Weights by step, for finetune.keep=best.

    A run that is killed resumes from its newest checkpoint, and needs the weights that were the
    best at that step. So older ones are removed when a checkpoint is whole, not before.
    """

    def __init__(self, scratch: Path, identity: str) -> None:
        """scratch, identity: of the job, as its checkpoints have them."""
        self._folder = scratch.with_name("best")
        self._prefix = identity[:16]

    def path(self, step: int) -> Path:
        """Where the weights of a step are, if they were written."""
        return self._folder / f"{self._prefix}-{step:09d}"

    @contextmanager
    def writing(self, step: int, *, main: bool) -> Iterator[Path]:
        """A folder for the weights of `step`, which counts when the block ends.

        main: as in `Checkpoints.writing`.
        """
        place = self.path(step)
        partial = place.with_name(f"partial-{place.name}")
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        yield partial
        if main:
            shutil.rmtree(place, ignore_errors=True)
            os.replace(partial, place)

    def remove_others(self, step: int | None) -> None:
        """Remove what is not the weights of this step."""
        if not self._folder.is_dir():
            return
        for found in self._folder.iterdir():
            if step is None or found != self.path(step):
                shutil.rmtree(found, ignore_errors=True)

    def adopt(self, others: Iterable[Path]) -> None:
        """Take over this job's weights from beside the checkpoints of other folders."""
        for other in others:
            for found in other.with_name("best").glob(f"{self._prefix}-*"):
                if other.with_name("best") != self._folder:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(self._folder / found.name, ignore_errors=True)
                    os.replace(found, self._folder / found.name)
