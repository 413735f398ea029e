"""The callback that reports each step, validates, and saves checkpoints and the result.

It replaces Lightning's logging and saving. `trainer.train` adds it to the trainer's callbacks.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from nemo.lightning import _strategy_lib
from nemo.lightning.ckpt_utils import ADAPTER_META_FILENAME

from pipeline.core.errors import PipelineError
from pipeline.models.architecture import read_shape
from pipeline.training.best_weights import BestWeights
from pipeline.training.job import GPU_REPORT_EVERY, Checkpoints, Job, Point, Trained
from pipeline.training.nemo.context import write_context
from pipeline.training.nemo.lora import freeze_other_rows, write_adapter
from pipeline.training.nemo.objectives import Preference
from pipeline.training.nemo.patches.checkpoint_safety import plain_write_errors
from pipeline.training.nemo.recompute import let_gradients_in
from pipeline.training.nemo.schedules import plus_ratio, set_rates
from pipeline.training.nemo.session import on_gpu
from pipeline.training.validation import best, ends_early, kept


class Recorder(pl.Callback):
    """Reports each step, validates, and saves checkpoints and the result."""

    def __init__(
        self,
        job: Job,
        checkpoints: Checkpoints,
        report: Callable[[Point], None],
        preference: Preference | None = None,
    ) -> None:
        self._job = job
        self._preference = preference
        self._checkpoints = checkpoints
        self._best = BestWeights(job.scratch, job.identity)
        self._report = report
        self._curve = checkpoints.curve()
        self.first_step = len(self._curve)
        self._logged: dict[str, Any] = {}
        self._pending: list[tuple[int, float, torch.Tensor, Any]] = []
        self._tokens = 0
        # Whether there is dropout, of the adapter or of the model's attention.
        self._draws = job.settings.adapter.dropout > 0 or read_shape(job.hf).attention_dropout > 0
        self._ratio = plus_ratio(job.settings)
        self._every = GPU_REPORT_EVERY if on_gpu() else 1
        self._began = self._marked = time.perf_counter()
        self._trainable = self._gpu_memory = 0
        self._saving = 0.0

    def log(self, name: str, value: Any, **options: Any) -> None:
        """Replaces LightningModule.log, which NeMo calls in each step."""
        self._logged[name] = value

    def on_train_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        self._began = self._marked = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        """NeMo has just put the adapter on the model: its callback comes before this one."""
        settings = self._job.settings
        if settings.method != "sft":
            freeze_other_rows(model, settings.adapter, read_shape(self._job.hf))
            if settings.recompute != "none":
                let_gradients_in(model)

    def on_train_batch_start(
        self, trainer: pl.Trainer, model: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        groups = trainer.optimizers[0].param_groups
        self._rate = groups[0]["lr"]
        if self._ratio != 1:
            self._rate = set_rates(groups, self._ratio)
        if self._draws:
            seed = self._job.seed * 1_000_003 + step
            torch.manual_seed(seed)
            if on_gpu():
                model_parallel_cuda_manual_seed(seed, force_reset_rng=True)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        model: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, job = trainer.global_step, self._job
        norm = self._logged["grad_norm"]
        loss = outputs["loss"].detach().reshape(1)
        if self._preference is not None:
            loss = torch.cat([loss, self._preference.sums.to(loss.device)])
        self._pending.append((step, self._rate, loss, norm))
        self._tokens += trainer.datamodule.tokens(step - 1)
        last = step == job.steps
        validate = last or step % job.settings.validate_every == 0
        save = not last and step % job.settings.checkpoint_every == 0
        if validate or save or step % self._every == 0:
            self._flush(trainer, *(self._validate(trainer) if validate else (None, {})))
        if validate and ends_early(job.settings.early_stopping, self._curve):
            trainer.should_stop = last = True
        if last:
            return
        if validate and job.settings.keep == "best" and best(self._curve) is self._curve[-1]:
            self._keep(trainer, step)
        if save:
            self._save(trainer, step)

    def on_train_end(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        """Save the weights while the process groups still exist."""
        self._seconds = time.perf_counter() - self._began
        self._trainable = _count_trainable(trainer)
        self._gpu_memory = _peak_memory(trainer) if on_gpu() else 0
        begin = time.perf_counter()
        result = kept(self._job.settings, self._curve).step
        if result == trainer.global_step:
            with plain_write_errors():
                trainer.save_checkpoint(self._job.out, weights_only=True)
        elif trainer.is_global_zero:
            self._job.out.mkdir(parents=True, exist_ok=True)
            os.replace(self._best.path(result) / "weights", self._job.out / "weights")
        if trainer.is_global_zero:
            write_context(trainer, self._job.out)
            if self._job.settings.method != "sft":
                write_adapter(self._job.out, self._job.settings.method, self._job.settings.adapter)
                self._name_base()
        trainer.strategy.barrier()
        self._saving = time.perf_counter() - begin

    def _name_base(self) -> None:
        """Name the base in NeMo's file beside the adapter as it lies from the artifact: the path
        that NeMo wrote depends on where this run's artifacts are."""
        if self._job.weights is not None:
            name = {"model_ckpt_path": f"../{self._job.weights.name}"}
            (self._job.out / "weights" / ADAPTER_META_FILENAME).write_text(json.dumps(name))

    def _flush(
        self, trainer: pl.Trainer, validation_loss: float | None, validated: dict[str, float]
    ) -> None:
        """Report the steps since the last call. validated: figures beside the validation loss."""
        if not self._pending:
            return
        steps, rates, losses, norms = zip(*self._pending, strict=True)
        stacked = torch.stack(losses).float()
        _strategy_lib._sync_from_last_pipeline_stage(stacked, broadcast=True)
        values = stacked.tolist()
        now = time.perf_counter()
        speed = self._tokens / (now - self._marked)
        for step, rate, (loss, *sums), norm in zip(steps, rates, values, norms, strict=True):
            self._require_finite("loss", loss, step)
            # Megatron clips by dividing by the norm: an infinite one makes all gradients zero.
            self._require_finite("gradient's norm", norm, step)
            final = step == steps[-1]
            figures = {} if self._preference is None else self._preference.figures(sums)
            if final:
                figures |= validated
            checked = validation_loss if final else None
            self._curve.append(Point(step, loss, rate, float(norm), speed, checked, figures))
            if trainer.is_global_zero:
                self._report(self._curve[-1])
        self._pending.clear()
        self._tokens = 0
        self._marked = time.perf_counter()

    def _require_finite(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            settings = self._job.settings
            raise PipelineError(
                f"the {name} is {value} at step {step} of {self._job.steps}: lower the learning "
                f"rate (now {settings.learning_rate:g}), lengthen the warm-up, or check the "
                f"rows of that step in the dataset's samples.html"
            )

    def _validate(self, trainer: pl.Trainer) -> tuple[float | None, dict[str, float]]:
        """The validation loss, in nats, and what the objective reports beside it. Its time does not
        count as the steps'."""
        if on_gpu():
            torch.cuda.synchronize()  # what still runs belongs to the steps
        begin = time.perf_counter()
        loss = self._validation_loss(trainer)
        self._marked += time.perf_counter() - begin
        return loss

    def _validation_loss(self, trainer: pl.Trainer) -> tuple[float | None, dict[str, float]]:
        """Mean loss of all validation tokens, or pairs, in nats, and figures beside it; None and {}
        without validation rows."""
        preference, parallel = self._preference, trainer.strategy.model
        data = preference.validation(trainer) if preference else trainer.datamodule.validation()
        total, tokens = 0.0, 0
        sums = torch.zeros_like(preference.sums) if preference else torch.zeros(0)
        parallel.eval()
        with torch.no_grad():
            for batch, count in data:
                loss = parallel.validation_step(iter([(batch, 0, 0)]))
                _strategy_lib._sync_from_last_pipeline_stage(loss, broadcast=True)
                total += float(loss) * count
                tokens += count
                if preference:
                    sums += preference.sums.to(sums.device)
        parallel.train()
        if preference is None or not tokens:
            return total / tokens if tokens else None, {}
        sums = sums.to(trainer.strategy.root_device)
        _strategy_lib._sync_from_last_pipeline_stage(sums, broadcast=True)
        return total / tokens, preference.figures(sums.tolist(), "validation_")

    def _keep(self, trainer: pl.Trainer, step: int) -> None:
        """Write the weights of the lowest validation loss so far."""
        with self._best.writing(step, main=trainer.is_global_zero) as folder:
            trainer.strategy.barrier()
            with plain_write_errors():
                trainer.save_checkpoint(folder, weights_only=True)
            trainer.strategy.barrier()
        self._marked = time.perf_counter()

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        with self._checkpoints.writing(step, self._curve, main=trainer.is_global_zero) as folder:
            trainer.strategy.barrier()  # the folder exists
            with plain_write_errors():
                trainer.save_checkpoint(folder)
                if self._preference is not None and trainer.is_global_zero:
                    self._preference.save(folder)
            trainer.strategy.barrier()  # every rank has written its part
        if self._job.settings.keep == "best" and trainer.is_global_zero:
            point = best(self._curve)
            self._best.remove_others(point.step if point else None)
        self._marked = time.perf_counter()

    def result(self) -> Trained:
        return Trained(
            curve=self._curve,
            seconds=self._seconds,
            save_seconds=self._saving,
            trainable_parameters=self._trainable,
            resumed_from=self.first_step,
            gpu_memory=self._gpu_memory,
        )


def _count_trainable(trainer: pl.Trainer) -> int:
    """Trained parameters of the whole model. Those that all tensor ranks hold count once."""
    from megatron.core import parallel_state

    first = parallel_state.get_tensor_model_parallel_rank() == 0
    count = sum(
        p.numel() - getattr(p, "frozen", 0)
        for p in trainer.lightning_module.parameters()
        if p.requires_grad and (first or getattr(p, "tensor_model_parallel", False))
    )
    total = torch.tensor(count, device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return int(total)


def _peak_memory(trainer: pl.Trainer) -> int:
    """Peak bytes of tensors on the rank that uses most."""
    most = torch.tensor(torch.cuda.max_memory_allocated(), device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)
