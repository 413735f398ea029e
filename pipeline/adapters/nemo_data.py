"""Token rows as NeMo's trainer takes them: one global batch a step, this rank's share of it.

Knows nothing of models; which rows a step sees is decided in `pipeline.batches`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import nemo.collections.llm.gpt.model.base as gpt
import torch
from megatron.core import parallel_state
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader, Dataset

from pipeline.batches import SampleOrder, TokenRows, collate, padded_length, validation_batches
from pipeline.training import Job

Tensors = dict[str, torch.Tensor]


class _Sampler(MegatronDataSampler):
    """Tells Megatron the batch sizes, and leaves the choice of samples to the dataset.

    With the loader type "batch" NeMo takes a global batch a step, of any length, and cuts it into
    micro-batches.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(
            seq_len=job.max_length,
            micro_batch_size=job.micro_batch_size,
            global_batch_size=job.global_batch_size,
            dataloader_type="batch",
            output_log=False,
        )

    def transform_dataloader(self, dataloader: Any, consumed_samples: int = 0) -> Any:
        return dataloader


class Data(pl.LightningDataModule):
    """The training batches from the trainer's step on, and the validation batches."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        self._train = TokenRows.load(job.train_rows)
        self._validation = TokenRows.load(job.validation_rows) if job.validation_rows else None
        self._order = SampleOrder(self._train.lengths, job.global_batch_size, job.seed)
        # Matrix kernels like multiples of 8; context parallel cuts a row into 2 parts a rank.
        self._multiple = math.lcm(8, job.tensor, 2 * job.context if job.context > 1 else 1)
        self.data_sampler = _Sampler(job)

    def train_dataloader(self) -> DataLoader[Tensors]:
        return DataLoader(_Steps(self, self.trainer.global_step), batch_size=None)

    def tokens(self, step: int) -> int:
        """Tokens of the step's rows, without padding."""
        return int(self._train.lengths[self._order.rows(step)].sum())

    def training_batch(self, step: int) -> Tensors:
        return self._tensors(self._train, self._order.rows(step))

    def validation(self) -> Iterator[tuple[Tensors, int]]:
        """All validation rows once: batches, and the number of trained tokens in each."""
        rows = self._validation
        if rows is None:
            return
        for chosen in validation_batches(len(rows), self._job.global_batch_size):
            count = rows.trained_tokens(chosen[chosen >= 0])
            yield self._tensors(rows, chosen), count

    def _tensors(self, rows: TokenRows, chosen: Any) -> Tensors:
        """tokens, labels, position_ids [rows, length] int64; loss_mask [rows, length] float32."""
        rank = parallel_state.get_data_parallel_rank()
        ranks = parallel_state.get_data_parallel_world_size()
        length = padded_length(rows, chosen, self._multiple)
        part = slice(rank, None, ranks)
        batch = collate(rows, chosen, length=length, part=part)
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


class _Steps(Dataset[Tensors]):
    """The global batches from `first` on; its length is all steps', as Lightning counts."""

    def __init__(self, data: Data, first: int) -> None:
        self._data, self._first = data, first

    def __len__(self) -> int:
        return self._data._job.steps

    def __getitem__(self, index: int) -> Tensors:
        return self._data.training_batch(self._first + index)
