"""Token rows as NeMo's trainer takes them: for each step, this rank's share of a global batch.

Knows nothing of models. `pipeline.training.batches` decides which rows a step sees.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.collections.llm.gpt.model.base as gpt
import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronStep
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader, Dataset

from pipeline.config.finetune import OBJECTIVES
from pipeline.training.batches import (
    Ints,
    SampleOrder,
    TokenRows,
    collate,
    collate_packs,
    pack,
    packed_length,
    padded_length,
    validation_batches,
)
from pipeline.training.job import Job

Tensors = dict[str, torch.Tensor]
# FP8 products need a multiple of 16 positions; padding to 64 is nothing in packs of thousands.
PACK_MULTIPLE = 64


class _Sampler(MegatronDataSampler):
    """Gives Megatron the batch sizes, and leaves the choice of samples to the dataset.

    With the loader type "batch" NeMo takes one global batch for each step, of any length, and cuts
    it into micro-batches. With packed rows every pack is one, and their number varies by step.
    """

    def __init__(self, job: Job, packs: Callable[[MegatronStep[Any, Any]], int]) -> None:
        settings = job.settings
        sides = OBJECTIVES[settings.objective].sides  # NeMo counts sequences
        super().__init__(
            seq_len=job.max_length,
            micro_batch_size=1 if settings.pack_length else settings.micro_batch_size * sides,
            global_batch_size=settings.global_batch_size * sides,
            dataloader_type="batch",
            output_log=False,
        )
        self._packs = packs if settings.pack_length else None

    def on_megatron_step_start(self, step: MegatronStep[Any, Any]) -> MegatronStep[Any, Any]:
        step = super().on_megatron_step_start(step)
        if self._packs is None:
            return step
        return dataclasses.replace(step, num_microbatches=self._packs(step))

    def transform_dataloader(self, dataloader: Any, consumed_samples: int = 0) -> Any:
        return dataloader


class Data(pl.LightningDataModule):
    """The training batches, beginning with the trainer's step, and the validation batches."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        self._train = self._load(job.train_rows)
        self._validation = self._load(job.validation_rows) if job.validation_rows else None
        self._order = SampleOrder(self._train.lengths, job.settings.global_batch_size, job.seed)
        # Matrix kernels are faster with multiples of 8, and FP8's need 16. Context parallelism cuts
        # a row into 2 parts for each rank.
        kernels = 16 if job.settings.precision == "fp8" else 8
        tensor, context = job.parallel.tensor, job.parallel.context
        self._multiple = math.lcm(kernels, tensor, 2 * context if context > 1 else 1)
        self._validating: int | None = None  # packs of the validation batch in progress
        self.data_sampler = _Sampler(job, self._microbatches)

    def _load(self, folder: Path) -> Any:
        """The rows of a folder; a subclass reads others."""
        return TokenRows.load(folder)

    def train_dataloader(self) -> DataLoader[Tensors]:
        return DataLoader(_Steps(self, self.trainer.global_step), batch_size=None)

    def tokens(self, step: int) -> int:
        """Tokens of the step's rows, without padding."""
        return int(self._train.tokens(self._order.rows(step)))

    def trained_tokens(self, step: int) -> int:
        """Tokens of the step's rows that count in the loss."""
        return int(self._train.trained_tokens(self._order.rows(step)))

    def training_batch(self, step: int) -> Tensors:
        return self._tensors(self._train, self._order.rows(step))

    def validation(self) -> Iterator[tuple[Tensors, int]]:
        """All validation rows once: batches, and the number of trained tokens in each."""
        rows = self._validation
        if rows is None:
            return
        for chosen in validation_batches(len(rows), self._job.settings.global_batch_size):
            count = rows.trained_tokens(chosen[chosen >= 0])
            batch = self._tensors(rows, chosen)
            self._validating = len(batch["tokens"])
            yield batch, count
            self._validating = None

    def _microbatches(self, step: MegatronStep[Any, Any]) -> int:
        """Packs of this rank in a step."""
        if self._validating is not None:
            return self._validating
        packs = self._packs(self._train, self._order.rows(self.trainer.global_step))
        return len(packs) // parallel_state.get_data_parallel_world_size()

    def _packs(self, rows: TokenRows, chosen: Ints) -> list[Ints]:
        ranks = parallel_state.get_data_parallel_world_size()
        length = self._job.settings.pack_length or 0
        return pack(rows.lengths, chosen, pack_length=length, ranks=ranks)

    def _tensors(self, rows: TokenRows, chosen: Ints) -> Tensors:
        """What NeMo calls a batch: this rank's part of the `chosen` rows, or of their packs.

        tokens, labels, position_ids: [rows, length] int64. loss_mask: [rows, length] float32.
        """
        part = self._part()
        if self._job.settings.pack_length:
            return self._packed(rows, self._packs(rows, chosen), part)
        return self._padded(rows, chosen[part], padded_length(rows, chosen, self._multiple))

    @staticmethod
    def _part() -> slice:
        """This rank's rows of a batch."""
        rank = parallel_state.get_data_parallel_rank()
        return slice(rank, None, parallel_state.get_data_parallel_world_size())

    def _padded(self, rows: TokenRows, chosen: Ints, length: int) -> Tensors:
        """The chosen rows as NeMo takes them, padded to `length`."""
        batch = collate(rows, chosen, length=length)
        count = len(batch.tokens)
        tensors = {
            "tokens": torch.from_numpy(batch.tokens),
            "labels": torch.from_numpy(batch.labels),
            "loss_mask": torch.from_numpy(batch.loss_mask),
            "position_ids": torch.arange(length).expand(count, length),
        }
        if not gpt.HAVE_TE:  # whose attention is causal by itself
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            tensors["attention_mask"] = hidden.expand(count, 1, length, length)
        return tensors

    def _packed(self, rows: TokenRows, packs: list[Ints], part: slice) -> Tensors:
        length = packed_length(rows.lengths, packs, math.lcm(PACK_MULTIPLE, self._multiple))
        return packed_tensors(rows, packs[part], length=length)


def packed_tensors(rows: TokenRows, packs: list[Ints], *, length: int) -> Tensors:
    """Packs of rows as NeMo takes them, [packs, length] each. A row attends only to itself.

    With Transformer Engine the boundaries of rows are added: cu_seqlens [packs, most rows + 2].
    Without it a mask is: [packs, 1, length, length], true where a position is hidden.
    """
    batch = collate_packs(rows, packs, length=length)
    boundaries = torch.from_numpy(batch.boundaries)
    tensors = {
        "tokens": torch.from_numpy(batch.tokens),
        "labels": torch.from_numpy(batch.labels),
        "loss_mask": torch.from_numpy(batch.loss_mask),
        "position_ids": torch.from_numpy(batch.positions),
    }
    if gpt.HAVE_TE:
        counts = (boundaries >= 0).sum(1, keepdim=True)
        sizes = boundaries.diff(dim=1).clamp(min=0).amax(1, keepdim=True)
        given = {"cu_seqlens": boundaries, "cu_seqlens_argmin": counts, "max_seqlen": sizes}
        return tensors | given
    places = torch.arange(length)
    ends = torch.where(boundaries < 0, length, boundaries)
    row = (places[None, :, None] >= ends[:, None, :]).sum(-1)  # [packs, length]
    other = row[:, :, None] != row[:, None, :]
    later = places[None, None, :] > places[None, :, None]
    return tensors | {"attention_mask": (other | later)[:, None]}


class _Steps(Dataset[Tensors]):
    """The global batches, beginning with `first`. Its length is that of all steps."""

    def __init__(self, data: Data, first: int) -> None:
        self._data, self._first = data, first

    def __len__(self) -> int:
        return self._data._job.steps

    def __getitem__(self, index: int) -> Tensors:
        return self._data.training_batch(self._first + index)
