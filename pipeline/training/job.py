"""A training run's data: the job, its loss curve, its checkpoints on disk.

Imports neither NeMo nor torch, so that settings are refused before either is imported.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.finetune import FinetuneConfig, ParallelConfig
from pipeline.core.errors import ResourceError

# Steps between readings of the loss from a GPU, for which the host waits. A CPU need not wait.
GPU_REPORT_EVERY = 10
# How a step is divided, over processes and over time. It does not change what the step computes.
LAYOUT = {"parallel", "micro_batch_size", "pack_length", "recompute"}


@dataclass(frozen=True)
class Job:
    """Everything that a training run depends on.

    settings: the configuration's section. hf: folder of config.json and tokenizer files. weights:
    NeMo checkpoint to start from, or None for random weights. train_rows, validation_rows: folders
    of `TokenRows`. scratch: folder of the checkpoints to resume from. out: where the result goes.
    max_length: longest row in tokens. nodes: machines that share the processes. made_from: digest
    of the rows and of the weights to start from. less_memory: which settings would make the job
    fit, for the message when memory runs out.
    """

    settings: FinetuneConfig
    hf: Path
    weights: Path | None
    train_rows: Path
    validation_rows: Path | None
    scratch: Path
    out: Path
    seed: int
    max_length: int
    nodes: int = 1
    made_from: str = ""
    less_memory: str = ""

    @property
    def parallel(self) -> ParallelConfig:
        return self.settings.parallel

    @property
    def steps(self) -> int:
        """Optimizer steps, as the stage worked them out (training/length.py)."""
        assert self.settings.max_steps is not None
        return self.settings.max_steps

    @property
    def identity(self) -> str:
        """Digest of all that a checkpoint must have been made with for this job to resume from it.

        Neither the number of processes nor the size of micro-batches counts: they compute the same,
        and a checkpoint is whole. So a run that ran out of memory resumes with smaller ones.
        """
        settings = self.settings.model_dump(mode="json", exclude=LAYOUT)
        run = [settings, self.seed, self.max_length, self.made_from]
        return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({**vars(self), "settings": self.settings.model_dump()}, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        fields["settings"] = FinetuneConfig.model_validate(fields["settings"])
        paths = ("hf", "weights", "train_rows", "validation_rows", "scratch", "out")
        return cls(**fields | {k: Path(fields[k]) if fields[k] else None for k in paths})


def out_of_memory(job: Job, longest: int, *, memory: int | None) -> ResourceError:
    """The error for a rank that ran out of memory.

    longest: tokens of the longest training row. memory: bytes of the rank's GPU; None on a CPU.
    """
    smaller = f"lower finetune.micro_batch_size (now {job.settings.micro_batch_size})"
    change = job.less_memory or smaller
    where = "the machine's memory" if memory is None else f"a GPU's {memory / 2**30:.0f} GiB"
    kept = len(Checkpoints(job.scratch, job.identity).curve())
    resumes = f"resumes from the checkpoint of step {kept}" if kept else "starts again"
    return ResourceError(
        f"{where} ran out while training on rows of up to {longest} tokens: {change} and run "
        f"again, which {resumes}"
    )


@dataclass(frozen=True)
class Point:
    """One step of a training curve.

    step: from 1. loss: mean over the trained tokens of the global batch, in nats; of a preference
    objective the mean over its rows. tokens_per_second: tokens read, without padding.
    validation_loss: in nats, at some steps. figures: what a preference objective reports beside its
    loss, by name.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    validation_loss: float | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """All figures of the step that have a value, by name."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("step", "figures")}
        return {k: v for k, v in plain.items() if v is not None} | self.figures


@dataclass(frozen=True)
class Trained:
    """The result of a run. seconds, save_seconds: of this process, without what it resumed from.

    gpu_memory: peak bytes of tensors on the rank that uses most; 0 on a CPU.
    """

    curve: list[Point]
    seconds: float
    save_seconds: float
    trainable_parameters: int
    resumed_from: int
    gpu_memory: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Trained":
        fields = json.loads(text)
        return cls(**fields | {"curve": [Point(**p) for p in fields["curve"]]})


class Checkpoints:
    """Checkpoints of a run. The newest one is whole at any time.

    Each is written under another name and then renamed, with the loss curve up to its step. The
    next write removes what a killed run left incomplete.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this job, or None."""
        whole = sorted(self._folder.glob("step-*[0-9]"))
        if whole and self._progress(whole[-1]).get("identity") == self._identity:
            return whole[-1]
        return None

    def curve(self) -> list[Point]:
        """The curve up to the newest checkpoint."""
        newest = self.newest()
        return [Point(**p) for p in self._progress(newest)["curve"]] if newest else []

    def discard(self) -> None:
        """Remove every checkpoint, so that the job starts anew."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def adopt(self, others: Iterable[Path]) -> None:
        """Take over the newest checkpoint of this job from another folder.

        A run with other micro-batches or another layout left it there.
        """
        if self.newest():
            return
        found = [Checkpoints(other, self._identity).newest() for other in others]
        newest = max((path for path in found if path), key=lambda path: path.name, default=None)
        if newest:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            os.replace(newest, self._folder / newest.name)

    @contextmanager
    def writing(self, step: int, curve: list[Point], *, main: bool) -> Iterator[Path]:
        """A folder for the checkpoint of `step`. It becomes the newest when the block ends.

        main: whether this process renames and removes folders; one process of a job does. Its block
        must end after all processes have written.
        """
        place = self._folder / f"step-{step:09d}"
        partial = self._folder / f"partial-{step:09d}"
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        yield partial
        if main:
            progress: dict[str, Any] = {"identity": self._identity}
            progress["curve"] = [asdict(p) for p in curve]
            (partial / "progress.json").write_text(json.dumps(progress))
            shutil.rmtree(place, ignore_errors=True)
            os.replace(partial, place)
            for old in self._folder.iterdir():
                if old != place:
                    shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def _progress(checkpoint: Path) -> dict[str, Any]:
        """Identity and curve; {} if the file is broken, as after a power cut."""
        try:
            found = json.loads((checkpoint / "progress.json").read_bytes())
            for point in found["curve"]:
                Point(**point)
            return {"identity": found["identity"], "curve": found["curve"]}
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return {}
