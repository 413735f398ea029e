"""Preference objectives: the loss of a micro-batch, and the rows and figures around it.

    dpo     arXiv:2305.18290, equation 7; with label smoothing as in Mitchell's cDPO (2023)
    orpo    arXiv:2403.07691, equation 6
    kto     arXiv:2402.01306, equation 8
    simpo   arXiv:2405.14734, equation 6

Every loss is a mean over the rows of the global batch, so it does not depend on how the batch is
cut into micro-batches or shared among ranks. KTO's estimate of how far the model has moved is also
one of the global batch, made by a pass before each step.

The reference of DPO and KTO is the model before its first step: the base, as an adapter begins with
adding nothing. Its log-probabilities of all rows that training will see are computed once, then,
and lie in each checkpoint, so that no second model is needed and a resumed run compares with the
same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.collections.llm.gpt.model.base as gpt
import numpy as np
import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from nemo.lightning import _strategy_lib
from nemo.lightning.megatron_parallel import MegatronLossReduction

from pipeline.config.finetune import OBJECTIVES, PreferenceConfig
from pipeline.core.errors import ArtifactError
from pipeline.training.batches import Ints, padded_length, validation_batches
from pipeline.training.job import Job
from pipeline.training.nemo.data import Data, Tensors
from pipeline.training.preference import PreferenceRows, both, first, second

REFERENCE = "reference.safetensors"  # in a checkpoint
# Of a batch, beside what NeMo knows: one value for each sequence.
_OURS = ("reference", "label", "counted")


def dpo_loss(lead: torch.Tensor, settings: PreferenceConfig) -> torch.Tensor:
    """lead: by how much more the better answer gained on the reference than the worse, in nats."""
    scaled, smoothing = _beta(settings) * lead, settings.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(scaled) - smoothing * F.logsigmoid(-scaled)


def orpo_loss(
    better: torch.Tensor, worse: torch.Tensor, settings: PreferenceConfig
) -> torch.Tensor:
    """better, worse: mean log-probability of a token of each answer."""
    odds = (better - worse) - (_log_of_rest(better) - _log_of_rest(worse))
    return -better - settings.odds_weight * F.logsigmoid(odds)


def _log_of_rest(log_probability: torch.Tensor) -> torch.Tensor:
    """log(1 - p) from log p, also where p is nearly 1."""
    return torch.log(-torch.expm1(log_probability.clamp(max=-1e-6)))


def simpo_loss(
    better: torch.Tensor, worse: torch.Tensor, settings: PreferenceConfig
) -> torch.Tensor:
    """better, worse: mean log-probability of a token of each answer."""
    return -F.logsigmoid(_beta(settings) * (better - worse) - settings.gamma)


def kto_loss(
    gain: torch.Tensor, label: torch.Tensor, moved: torch.Tensor, settings: PreferenceConfig
) -> torch.Tensor:
    """gain: log-probability of each answer over the reference's. label: 1 for a good answer, 0 for
    a bad one. moved: the estimate of the divergence from the reference, in nats."""
    beta = _beta(settings)
    good = settings.desirable_weight * (1 - torch.sigmoid(beta * (gain - moved)))
    bad = settings.undesirable_weight * (1 - torch.sigmoid(beta * (moved - gain)))
    return torch.where(label > 0, good, bad)


def _beta(settings: PreferenceConfig) -> float:
    assert settings.beta is not None  # filled in by config/model_defaults.py
    return settings.beta


def log_probabilities(
    losses: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each sequence the log-probability of its answer, and the number of the answer's tokens.

    losses, mask: [sequences, length].
    """
    mask = mask.float()
    return -(losses.float() * mask).sum(1), mask.sum(1)


class _Preference(MegatronLossReduction[Any, Any]):
    """The loss of a micro-batch. Its `sums` are those of the last step or validation batch.

    sums: [2, figures], of the values of `names` and of what each is a mean over.
    moved: KTO's estimate for the present batch, in nats.
    """

    def __init__(self, objective: str, settings: PreferenceConfig) -> None:
        super().__init__()
        self._objective, self._settings = objective, settings
        # The loss, then the rewards of good and bad answers and the share that is told apart.
        self.names = ["loss", "chosen_reward", "rejected_reward", "reward_accuracy"]
        self.names += {"kto": ["divergence"], "orpo": ["answer_loss"]}.get(objective, [])
        self.sums = torch.zeros(2, len(self.names))
        self.moved = torch.zeros(())

    def forward(self, batch: Any, forward_out: torch.Tensor) -> Any:
        total, tokens = log_probabilities(forward_out, batch["loss_mask"])
        if self._objective == "kto":
            values, over = self._kto(batch, total)
        else:
            values, over = self._pairs(batch, total, tokens)
        loss, count = (values[0] * over[0]).sum(), over[0].sum()
        sums = [torch.stack([(v * w).sum(), w.sum()]) for v, w in zip(values, over, strict=True)]
        return loss, count.detach().to(torch.int), {"sums": torch.stack(sums, dim=1).detach()}

    def _pairs(
        self, batch: Any, total: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        settings, counted = self._settings, batch["counted"][::2]
        more = []
        if self._objective == "dpo":
            gain = total - batch["reference"]
            rewards = _beta(settings) * gain
            loss = dpo_loss(gain[::2] - gain[1::2], settings)
        else:
            means = total / tokens.clamp(min=1)
            better, worse = means[::2], means[1::2]
            if self._objective == "simpo":
                rewards = _beta(settings) * means
                loss = simpo_loss(better, worse, settings)
            else:
                rewards = settings.odds_weight * means
                # Rows that only fill up a batch have no token, and so no probability.
                real = counted > 0
                loss = orpo_loss(better.where(real, -1.0), worse.where(real, -1.0), settings)
                more = [-better]
        good, bad = rewards[::2], rewards[1::2]
        values = [loss, good, bad, (good > bad).float(), *more]
        return values, [counted] * len(values)

    def _kto(
        self, batch: Any, total: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        settings, counted, label = self._settings, batch["counted"], batch["label"]
        gain, moved = total - batch["reference"], self.moved.to(total.device)
        reward, good, bad = _beta(settings) * gain, counted * label, counted * (1 - label)
        right = ((gain > moved) == (label > 0)).float()
        loss = kto_loss(gain, label, moved, settings)
        values = [loss, reward, reward, right, moved.expand_as(gain)]
        return values, [counted, good, bad, counted, counted]

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Any]) -> torch.Tensor:
        sums = torch.stack([part["sums"] for part in losses_reduced_per_micro_batch]).sum(0)
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        self.sums = sums
        return sums[0, 0] / sums[1, 0]


class _LogProbabilities(MegatronLossReduction[Any, Any]):
    """In place of a loss: the log-probability of each of this rank's answers."""

    def forward(self, batch: Any, forward_out: torch.Tensor) -> Any:
        total, _ = log_probabilities(forward_out, batch["loss_mask"])
        count = torch.tensor(len(total), dtype=torch.int)
        return total.sum(), count, {"total": total.detach()}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Any]) -> torch.Tensor:
        return torch.cat([part["total"] for part in losses_reduced_per_micro_batch])


def _data_step(batches: Iterator[Any]) -> dict[str, Any]:
    """NeMo's step, which keeps only what it knows of a batch, and our own values."""
    given = next(batches)
    batch = given[0] if isinstance(given, tuple) else given
    ours = {name: batch[name].cuda(non_blocking=True) for name in _OURS}
    known = {name: tensor for name, tensor in batch.items() if name not in _OURS}
    return {**gpt.gpt_data_step(iter([known])), **ours}


class PreferenceData(Data):
    """The batches of a preference objective. reference: log-probability of each sequence's answer
    before training, by "train" and "validation"."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._pairs = OBJECTIVES[job.settings.objective].rows == "pairs"
        self.reference: dict[str, np.ndarray[Any, Any]] = {}

    def _load(self, folder: Path) -> PreferenceRows:
        return PreferenceRows.load(folder)

    def _tensors(self, rows: Any, chosen: Ints) -> Tensors:
        part = chosen[self._part()]
        if self._pairs:
            return self.sequences(rows, both(part), both(chosen))
        return self.sequences(rows, first(part), first(chosen))

    def sequences(self, rows: PreferenceRows, numbers: Ints, among: Ints) -> Tensors:
        """A batch of sequences by their numbers, padded to the longest of `among`.

        reference, label, counted: [sequences] float32; counted is 0 for one that is all padding.
        """
        length = padded_length(rows.sequences, among, self._multiple)
        tensors = self._padded(rows.sequences, numbers, length)
        kept, known = np.maximum(numbers, 0), self.reference.get(self._split(rows))
        zeros = np.zeros(len(numbers), np.float32)
        own = {
            "reference": zeros if known is None else known[kept],
            "label": rows.labels[kept // 2].astype(np.float32),
            "counted": (numbers >= 0).astype(np.float32),
        }
        return tensors | {name: torch.from_numpy(value) for name, value in own.items()}

    def _split(self, rows: PreferenceRows) -> str:
        return "train" if rows is self._train else "validation"

    def batches(self) -> Iterator[tuple[PreferenceRows, Ints]]:
        """The validation rows once, and the numbers of the rows of each batch."""
        if (rows := self._validation) is not None:
            for chosen in validation_batches(len(rows), self._job.settings.global_batch_size):
                yield rows, chosen

    def step_rows(self, step: int) -> tuple[PreferenceRows, Ints]:
        return self._train, self._order.rows(step)

    def to_compare(self) -> Iterator[tuple[str, PreferenceRows, Ints]]:
        """The splits with the numbers of the sequences that training will see, shortest first."""
        steps = range(self._job.steps)
        seen = np.unique(np.concatenate([self._order.rows(step) for step in steps]))
        splits = [("train", self._train, seen)]
        if self._validation is not None:
            splits.append(("validation", self._validation, np.arange(len(self._validation))))
        for name, rows, numbers in splits:
            sequences = both(numbers)
            by_length = np.argsort(rows.sequences.lengths[sequences], kind="stable")
            yield name, rows, sequences[by_length]

    def part(self, numbers: Ints) -> Ints:
        """This rank's of the sequences of a batch."""
        return numbers[self._part()]


class Preference(pl.Callback):
    """What a preference objective adds to a training: it must come before the recorder."""

    def __init__(self, job: Job, data: PreferenceData, resume: Path | None) -> None:
        self._job, self._data, self._resume = job, data, resume
        self._loss = _Preference(job.settings.objective, job.settings.preference)
        self._compares = OBJECTIVES[job.settings.objective].compares

    def attach(self, model: gpt.GPTModel) -> None:
        """Have a model compute this loss."""
        model.config.data_step_fn = _data_step
        model._training_loss_reduction = model._validation_loss_reduction = self._loss

    def on_train_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        if not self._compares:
            return
        if self._resume is not None:
            self._data.reference = _read_reference(self._resume / REFERENCE)
            return
        for name, rows, numbers in self._data.to_compare():
            found = np.zeros(len(rows.sequences), np.float32)
            found[numbers] = self._log_probabilities(trainer, rows, numbers)
            self._data.reference[name] = found

    def on_train_batch_start(
        self, trainer: pl.Trainer, model: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._job.settings.objective == "kto":
            self._estimate(trainer, *self._data.step_rows(trainer.global_step))

    def validation(self, trainer: pl.Trainer) -> Iterator[tuple[Tensors, int]]:
        """All validation rows once: batches, and the number of rows in each."""
        for rows, chosen in self._data.batches():
            if self._job.settings.objective == "kto":
                self._estimate(trainer, rows, chosen)
            yield self._data._tensors(rows, chosen), int((chosen >= 0).sum())

    @property
    def sums(self) -> torch.Tensor:
        """Of the last step or validation batch: [2 × figures], to be added up; see `figures`."""
        return self._loss.sums.reshape(-1)

    def figures(self, sums: Sequence[float], prefix: str = "") -> dict[str, float]:
        """Means by name. One over no row, as of bad answers where there are none, is left out."""
        names = self._loss.names
        total, count = sums[: len(names)], sums[len(names) :]
        means = {n: t / c for n, t, c in zip(names[1:], total[1:], count[1:], strict=True) if c}
        if {"chosen_reward", "rejected_reward"} <= means.keys():
            means["reward_margin"] = means["chosen_reward"] - means["rejected_reward"]
        return {f"{prefix}{name}": mean for name, mean in means.items()}

    def save(self, folder: Path) -> None:
        """Keep the reference in a checkpoint."""
        if self._compares:
            from safetensors.numpy import save_file

            save_file(self._data.reference, folder / REFERENCE)

    def _estimate(self, trainer: pl.Trainer, rows: PreferenceRows, chosen: Ints) -> None:
        """KTO's estimate of the divergence from the reference, over the rows of a global batch."""
        data = self._data
        numbers = second(chosen)
        own = self._forward(trainer, data.sequences(rows, data.part(numbers), numbers))
        real = data.part(numbers)
        kept = torch.from_numpy(np.maximum(real, 0))
        reference = torch.from_numpy(data.reference[data._split(rows)])[kept].to(own.device)
        counted = torch.from_numpy(real >= 0).to(own.device)
        sums = torch.stack([((own - reference) * counted).sum(), counted.sum().float()])
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        self._loss.moved = (sums[0] / sums[1]).clamp(min=0)

    def _log_probabilities(
        self, trainer: pl.Trainer, rows: PreferenceRows, numbers: Ints
    ) -> np.ndarray[Any, Any]:
        """The model's log-probability of the answer of each of these sequences."""
        settings, data = self._job.settings, self._data
        size = settings.global_batch_size * OBJECTIVES[settings.objective].sides
        found = torch.zeros(len(numbers))
        for places in validation_batches(len(numbers), size):
            chosen = np.where(places < 0, -1, numbers[np.maximum(places, 0)])
            own = self._forward(trainer, data.sequences(rows, data.part(chosen), chosen))
            mine = data.part(places)
            found[torch.from_numpy(mine[mine >= 0])] = own[torch.from_numpy(mine >= 0)].cpu()
        found = found.to(trainer.strategy.root_device)
        torch.distributed.all_reduce(found, group=parallel_state.get_data_parallel_group())
        return found.cpu().numpy()

    def _forward(self, trainer: pl.Trainer, batch: Tensors) -> torch.Tensor:
        """The log-probability of each of this rank's answers, without dropout."""
        parallel = trainer.strategy.model
        training = parallel.training
        parallel.eval()
        with torch.no_grad():
            step = iter([(batch, 0, 0)])
            own = parallel.validation_step(step, loss_reduction=_LogProbabilities())
        parallel.train(training)
        if not parallel_state.is_pipeline_last_stage():
            own = torch.zeros(len(batch["tokens"]), device=trainer.strategy.root_device)
        _strategy_lib._sync_from_last_pipeline_stage(own, broadcast=True)
        return own


def _read_reference(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({type(error).__name__}): remove {file.parent} to train from "
            "the first step"
        ) from error
