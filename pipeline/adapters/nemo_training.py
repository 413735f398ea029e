"""Trains a model with NeMo 2.0 on Megatron-Core, on this machine's CPU or GPUs.

    with nemo_session():
        trained = train(job, report)     # writes job.out/weights and job.out/context

The same code runs in float32 over gloo and in bfloat16 with the distributed optimizer over NCCL;
`pipeline.adapters.launch` starts it in several processes. Which rows a step sees is a function of
the seed and the step (`pipeline.batches`), and randomness within a step is seeded with both, so a
run that goes on from a checkpoint computes what an uninterrupted one does.

Knows nothing of conversations, stages or artifacts.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.optimizer import OptimizerConfig
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from nemo.lightning import _strategy_lib
from nemo.lightning.io.pl import TrainerContext
from nemo.lightning.pytorch.strategies.utils import RestoreConfig
from nemo.lightning.resume import AdapterPath

from pipeline.adapters.adapter_start import adapter_start
from pipeline.adapters.fast_training import fast_training
from pipeline.adapters.nemo import model_for
from pipeline.adapters.nemo_data import Data
from pipeline.adapters.nemo_session import has_transformer_engine, on_gpu
from pipeline.batches import TokenRows
from pipeline.errors import PipelineError, ResourceError
from pipeline.preflight import out_of_memory
from pipeline.training import Checkpoints, Job, Point, Trained

if TYPE_CHECKING:
    from nemo.collections.llm import GPTModel

# Steps between reading the loss off a GPU, for which the host waits. A CPU has nothing to wait for.
GPU_REPORT_EVERY = 10
# E4M3 forward, E5M2 backward; scales from the largest values of the last 16 steps, so that no pass
# over the data only looks for them (arXiv:2209.05433).
FP8 = {
    "fp8": "hybrid",
    "fp8_recipe": "delayed",
    "fp8_amax_history_len": 16,
    "fp8_amax_compute_algo": "max",
}


def train(job: Job, report: Callable[[Point], None]) -> Trained:
    """Train as `job` says, from its newest checkpoint if there is one, and save the result.

    report: called on the first rank after each step, in order (on a GPU ten steps at a time).

    Must run within `nemo_session()`, in every process of the job.

    Raises:
        PipelineError: the loss is not a finite number.
        ResourceError: memory ran out.
    """
    pl.seed_everything(job.seed)
    model = model_for(
        job.hf,
        seq_length=job.max_length,
        # The mean over the tokens of the global batch, not the mean of micro-batches' means.
        calculate_per_token_loss=True,
        # NeMo asks for Apex, of which only the output layer's part is needed (fast_training).
        gradient_accumulation_fusion=job.method == "sft" and has_transformer_engine(),
    )
    checkpoints = Checkpoints(job.scratch, job.identity)
    recorder = _Recorder(job, checkpoints, report)
    # What NeMo logs goes to the recorder; Lightning's bookkeeping of it costs a step 10 ms.
    model.log = recorder.log
    trainer = _trainer(job)
    trainer.callbacks.append(recorder)
    _add_adapter(job, model, trainer)
    _optimizer(job).connect(model)
    if resume := checkpoints.newest():
        base = None if job.method == "sft" else job.weights
        trainer.ckpt_path = AdapterPath(resume, base_model_path=base) if base else str(resume)
    elif job.weights is not None:
        trainer.strategy.restore_config = RestoreConfig(path=str(job.weights))
    try:
        with fast_training(), adapter_start(job.seed), _readable_failures(job):
            trainer.fit(model, Data(job))
    finally:
        destroy_num_microbatches_calculator()  # or the next run must have the same batch sizes
    return recorder.result()


def _trainer(job: Job) -> nl.Trainer:
    gpu = on_gpu()
    ddp = DistributedDataParallelConfig(
        # Whether ranks share the optimizer's state. Without it Megatron takes torch's Adam, which
        # counts steps in a tensor of no dimension, and the shared state cannot hold that.
        use_distributed_optimizer=has_transformer_engine(),
        # An adapter's gradients are small sums; a whole model's are accumulated in float32.
        grad_reduce_in_fp32=not gpu or job.method == "sft",
        check_for_nan_in_grad=False,  # the loss is checked, without waiting for the GPU
    )
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=job.tensor,
        pipeline_model_parallel_size=job.pipeline,
        context_parallel_size=job.context,
        sequence_parallel=gpu and job.tensor > 1,  # gloo has no reduce-scatter
        pipeline_dtype=torch.bfloat16 if gpu else torch.float32,
        ddp=ddp,
        gradient_as_bucket_view=True,
        ckpt_optim_fully_reshardable=True,  # to go on with another number of ranks
        ckpt_async_save=False,
        ckpt_parallel_load=job.processes > 1,
        replace_progress_bar=False,
    )
    if gpu:
        precision = nl.MegatronMixedPrecision(
            precision="bf16-mixed",
            params_dtype=torch.bfloat16,
            pipeline_dtype=torch.bfloat16,
            autocast_enabled=False,
            grad_reduce_in_fp32=ddp.grad_reduce_in_fp32,
            **(FP8 if job.precision == "fp8" else {}),
        )
    else:
        precision = nl.MegatronMixedPrecision(precision="32")
    strategy.log_train_loss = False  # the recorder keeps it, without Lightning's bookkeeping
    trainer = nl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=job.processes // job.nodes,
        num_nodes=job.nodes,
        max_steps=job.steps,
        strategy=strategy,
        plugins=precision,
        limit_val_batches=0,  # the recorder validates
        num_sanity_val_steps=0,
        log_every_n_steps=job.steps + 1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if job.processes == 1:
        # One process needs no network port for its process group.
        strategy.store = torch.distributed.HashStore()
    return trainer


def _add_adapter(job: Job, model: GPTModel, trainer: nl.Trainer) -> None:
    """Put LoRA or DoRA on every linear layer, once the base is loaded."""
    if job.method == "sft":
        return
    from nemo.collections.llm import peft

    make = peft.DoRA if job.method == "dora" else peft.LoRA
    adapter = make(dim=job.rank, alpha=job.alpha, dropout=job.dropout)
    model.model_transform = adapter
    model.__io__.model_transform = adapter.__io__  # what the checkpoint's context tells of it
    # The adapter itself as the callback: only so are gradient buffers made for it alone.
    trainer.callbacks.append(adapter)


def _optimizer(job: Job) -> nl.MegatronOptimizerModule:
    """AdamW with a linear warm-up and a cosine decay; betas as in arXiv:2005.14165."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=job.learning_rate,
        adam_beta2=0.95,
        weight_decay=job.weight_decay,
        clip_grad=job.clip_grad,
        bf16=on_gpu(),
        fp16=False,
        use_distributed_optimizer=has_transformer_engine(),
    )
    schedule = nl.lr_scheduler.CosineAnnealingScheduler(
        max_steps=job.steps,
        warmup_steps=job.warmup_steps,
        constant_steps=0,
        min_lr=job.min_learning_rate,
    )
    return nl.MegatronOptimizerModule(config, lr_scheduler=schedule)


class _Recorder(pl.Callback):
    """Follows a run: reports each step, validates, saves checkpoints and the result."""

    def __init__(self, job: Job, checkpoints: Checkpoints, report: Callable[[Point], None]) -> None:
        self._job = job
        self._checkpoints = checkpoints
        self._report = report
        self._curve = checkpoints.curve()
        self.first_step = len(self._curve)
        self._logged: dict[str, Any] = {}
        self._pending: list[tuple[int, float, torch.Tensor, Any]] = []
        self._tokens = 0
        self._every = GPU_REPORT_EVERY if on_gpu() else 1
        self._began = self._marked = time.perf_counter()
        self._trainable = self._gpu_memory = 0
        self._saving = 0.0

    def log(self, name: str, value: Any, **options: Any) -> None:
        """Stands in for LightningModule.log, which NeMo calls in each step."""
        self._logged[name] = value

    def on_train_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        self._began = self._marked = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, model: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]
        if self._job.dropout > 0:
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
        self._pending.append((step, self._rate, outputs["loss"].detach(), norm))
        self._tokens += trainer.datamodule.tokens(step - 1)
        last = step == job.steps
        validate = last or step % job.validate_every == 0
        save = not last and step % job.checkpoint_every == 0
        if validate or save or step % self._every == 0:
            self._flush(trainer, self._validation_loss(trainer) if validate else None)
        if save:
            self._save(trainer, step)

    def on_train_end(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        """Save the weights, while the process groups still are there."""
        self._seconds = time.perf_counter() - self._began
        self._trainable = _count_trainable(trainer)
        self._gpu_memory = _peak_memory(trainer) if on_gpu() else 0
        begin = time.perf_counter()
        trainer.save_checkpoint(self._job.out, weights_only=True)
        if trainer.is_global_zero:
            context = TrainerContext.from_trainer(trainer)
            context.io_dump(self._job.out / "context", yaml_attrs=["model"])
        trainer.strategy.barrier()
        self._saving = time.perf_counter() - begin

    def _flush(self, trainer: pl.Trainer, validation_loss: float | None) -> None:
        """Turn the steps since the last time into points of the curve."""
        if not self._pending:
            return
        steps, rates, losses, norms = zip(*self._pending, strict=True)
        stacked = torch.stack(losses).float()
        _strategy_lib._sync_from_last_pipeline_stage(stacked, broadcast=True)
        values = stacked.tolist()
        now = time.perf_counter()
        speed = self._tokens / (now - self._marked)
        for step, rate, loss, norm in zip(steps, rates, values, norms, strict=True):
            if not math.isfinite(loss):
                raise PipelineError(
                    f"the loss is {loss} at step {step} of {self._job.steps}: lower the learning "
                    f"rate (now {self._job.learning_rate:g}), lengthen the warm-up, or look at the "
                    f"rows of that step with the dataset's samples.html"
                )
            final = step == steps[-1]
            self._curve.append(
                Point(step, loss, rate, float(norm), speed, validation_loss if final else None)
            )
            if trainer.is_global_zero:
                self._report(self._curve[-1])
        self._pending.clear()
        self._tokens = 0
        self._marked = time.perf_counter()

    def _validation_loss(self, trainer: pl.Trainer) -> float | None:
        """Mean loss of all validation tokens, in nats; None without validation rows."""
        data = trainer.datamodule
        parallel = trainer.strategy.model
        total, tokens = 0.0, 0
        parallel.eval()
        with torch.no_grad():
            for batch, count in data.validation():
                loss = parallel.validation_step(iter([(batch, 0, 0)]))
                _strategy_lib._sync_from_last_pipeline_stage(loss, broadcast=True)
                total += float(loss) * count
                tokens += count
        parallel.train()
        return total / tokens if tokens else None

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        with self._checkpoints.writing(step, self._curve, main=trainer.is_global_zero) as folder:
            trainer.strategy.barrier()  # the folder is there
            trainer.save_checkpoint(folder)
            trainer.strategy.barrier()  # and every rank's part in it
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
    """Trained parameters of the whole model. Those that every tensor rank holds count once."""
    from megatron.core import parallel_state

    first = parallel_state.get_tensor_model_parallel_rank() == 0
    count = sum(
        p.numel()
        for p in trainer.lightning_module.parameters()
        if p.requires_grad and (first or getattr(p, "tensor_model_parallel", False))
    )
    total = torch.tensor(count, device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return int(total)


def _peak_memory(trainer: pl.Trainer) -> int:
    """Bytes of tensors at the peak, of the fullest rank."""
    most = torch.tensor(torch.cuda.max_memory_allocated(), device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


@contextmanager
def _readable_failures(job: Job) -> Iterator[None]:
    """Say what to do about a lack of memory; let Ctrl-C be one, where Lightning exits with 1."""
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGINT, interrupt)
        raise KeyboardInterrupt from error
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(job) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise _out_of_memory(job) from error


def _out_of_memory(job: Job) -> ResourceError:
    longest = int(TokenRows.load(job.train_rows).lengths.max()) - 1
    memory = torch.cuda.get_device_properties().total_memory if on_gpu() else None
    return out_of_memory(job, longest, memory=memory)
