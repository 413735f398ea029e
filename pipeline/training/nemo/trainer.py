"""Trains a model with NeMo 2.0 on Megatron-Core, on this machine's CPU or GPUs.

    with nemo_session():
        trained = train(job, report)     # writes job.out/weights and job.out/context

The same code runs in float32 over gloo and in bfloat16 with the distributed optimizer over NCCL;
`training/workers.py` starts it in several processes. Which rows a step sees is a function of the
seed and the step (`training/batches.py`). Randomness within a step is seeded with both, so a run
that resumes from a checkpoint computes what an uninterrupted one does.

Knows nothing of conversations, stages or artifacts.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from fiddle._src.experimental.serialization import find_node_traverser
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.optimizer import OptimizerConfig
from nemo.lightning.pytorch.strategies.utils import RestoreConfig
from nemo.lightning.resume import AdapterPath

from pipeline.core.errors import ResourceError
from pipeline.models.architecture import read_shape
from pipeline.training.job import Checkpoints, Job, Point, Trained, out_of_memory
from pipeline.training.nemo.callbacks import Recorder
from pipeline.training.nemo.data import Data
from pipeline.training.nemo.lora import new_adapter
from pipeline.training.nemo.models import checkpoint_files, model_for
from pipeline.training.nemo.objectives import Preference, PreferenceData
from pipeline.training.nemo.patches.checkpoint_safety import check_checkpoint, one_line_refusals
from pipeline.training.nemo.patches.ddp_stream_sync import synchronized_ddp
from pipeline.training.nemo.patches.lora_init import seeded_lora_init
from pipeline.training.nemo.patches.lora_sequence_parallel import adapters_that_gather
from pipeline.training.nemo.patches.performance import fast_training
from pipeline.training.nemo.recompute import recompute_options
from pipeline.training.nemo.schedules import plus_ratio, schedule
from pipeline.training.nemo.session import has_transformer_engine, on_gpu
from pipeline.training.nemo.vocabulary import hide_padding, padded_size
from pipeline.training.preference import load_rows

if TYPE_CHECKING:
    from nemo.collections.llm import GPTModel

# E4M3 forward, E5M2 backward. Scales come from the largest values of the last 16 steps, so finding
# them takes no pass over the data of its own (arXiv:2209.05433).
FP8 = {
    "fp8": "hybrid",
    "fp8_recipe": "delayed",
    "fp8_amax_history_len": 16,
    "fp8_amax_compute_algo": "max",
}


def train(job: Job, report: Callable[[Point], None]) -> Trained:
    """Train a job, from its newest checkpoint if there is one, and save the result.

    report: called on the first rank after each step, in order (on a GPU ten steps at a time).

    Must run within `nemo_session(job.settings.patches)`, in every process of the job.

    Raises:
        PipelineError: the loss or the gradient's norm is not a finite number.
        ResourceError: memory ran out.
        ArtifactError: a checkpoint to start or resume from is damaged, or holds more than weights.
    """
    pl.seed_everything(job.seed)
    fused, patched = has_transformer_engine(), job.settings.patches == "all"
    # Its gradient is wrong without a patch; see records.CROSS_ENTROPY.
    unpatched = {} if patched else {"cross_entropy_fusion_impl": "native"}
    shape = read_shape(job.hf)
    model = model_for(
        job.hf,
        seq_length=job.max_length,
        vocab_size=padded_size(shape.vocab, job.parallel.tensor),
        # The mean over the tokens of the global batch, not the mean of micro-batches' means.
        calculate_per_token_loss=True,
        # Needs Apex, or the patch of the output layer.
        gradient_accumulation_fusion=fused and patched and job.settings.method == "sft",
        # Queries and keys are rotated in place, without copies; for packs see packed_rope.py.
        fused_single_qkv_rope=fused and not job.settings.pack_length,
        **recompute_options(job.settings.recompute, experts=shape.experts is not None),
        **unpatched,
    )
    hide_padding(model, shape.vocab)
    checkpoints = Checkpoints(job.scratch, job.identity)
    data, preference = _data(job, model, checkpoints.newest())
    recorder = Recorder(job, checkpoints, report, preference)
    # The recorder takes what NeMo logs; Lightning's bookkeeping of it costs 10 ms a step.
    model.log = recorder.log
    trainer = _trainer(job)
    _add_adapter(job, model, trainer)
    # Behind the adapter, which is there when training starts.
    trainer.callbacks += [recorder] if preference is None else [preference, recorder]
    optimizer = _optimizer(job)
    optimizer.connect(model)
    if job.settings.method == "sft":
        _scale_beforehand(model, optimizer, lambda: data.trained_tokens(trainer.global_step))
    if resume := checkpoints.newest():
        base = None if job.settings.method == "sft" else job.weights
        trainer.ckpt_path = AdapterPath(resume, base_model_path=base) if base else str(resume)
    elif job.weights is not None:
        trainer.strategy.restore_config = RestoreConfig(path=str(job.weights))
    read = [folder for folder in (job.weights, resume) if folder is not None]
    for folder in read:
        check_checkpoint(folder)
    try:
        with _patches(job), _readable_failures(job), one_line_refusals(*read):
            trainer.fit(model, data)
    finally:
        destroy_num_microbatches_calculator()  # or the next run must have the same batch sizes
    return recorder.result()


def _data(job: Job, model: GPTModel, resume: Path | None) -> tuple[Data, Preference | None]:
    """The job's batches; and what its objective adds, unless that is the loss of good answers."""
    if job.settings.objective == "sft":
        return Data(job), None
    data = PreferenceData(job)
    preference = Preference(job, data, resume)
    preference.attach(model)
    return data, preference


@contextmanager
def _patches(job: Job) -> Iterator[None]:
    with ExitStack() as stack:
        if job.settings.patches == "all":
            stack.enter_context(fast_training())
            stack.enter_context(seeded_lora_init(job.seed))
            stack.enter_context(synchronized_ddp())
            stack.enter_context(adapters_that_gather())
        yield


def _trainer(job: Job) -> nl.Trainer:
    gpu = on_gpu()
    # Before it is made: NeMo would do so afterwards, and describe the first one of a process by a
    # pickle, and the next by its arguments.
    if not find_node_traverser(nl.MegatronMixedPrecision):
        nl.io.track_io(nl.MegatronMixedPrecision)
    ddp = DistributedDataParallelConfig(
        # Whether ranks share the optimizer's state. Without it Megatron takes torch's Adam, which
        # counts steps in a tensor of no dimension, and the shared state cannot hold that.
        use_distributed_optimizer=has_transformer_engine(),
        # An adapter's gradients are small sums; a whole model's are accumulated in float32.
        grad_reduce_in_fp32=not gpu or job.settings.method == "sft",
        check_for_nan_in_grad=False,  # the recorder checks loss and norm, without another wait
    )
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=job.parallel.tensor,
        pipeline_model_parallel_size=job.parallel.pipeline,
        context_parallel_size=job.parallel.context,
        sequence_parallel=gpu and job.parallel.tensor > 1,  # gloo has no reduce-scatter
        pipeline_dtype=torch.bfloat16 if gpu else torch.float32,
        ddp=ddp,
        gradient_as_bucket_view=True,
        ckpt_optim_fully_reshardable=True,  # to resume with another number of ranks
        ckpt_async_save=False,
        ckpt_torch_dist_multiproc=checkpoint_files(),
        ckpt_parallel_load=job.parallel.processes > 1,
        replace_progress_bar=False,
    )
    if gpu:
        precision = nl.MegatronMixedPrecision(
            precision="bf16-mixed",
            params_dtype=torch.bfloat16,
            pipeline_dtype=torch.bfloat16,
            autocast_enabled=False,
            grad_reduce_in_fp32=ddp.grad_reduce_in_fp32,
            **(FP8 if job.settings.precision == "fp8" else {}),
        )
    else:
        precision = nl.MegatronMixedPrecision(precision="32")
    strategy.log_train_loss = False  # the recorder keeps it, without Lightning's bookkeeping
    trainer = nl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=job.parallel.processes // job.nodes,
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
    if job.parallel.processes == 1:
        # One process needs no network port for its process group.
        strategy.store = torch.distributed.HashStore()
    return trainer


def _add_adapter(job: Job, model: GPTModel, trainer: nl.Trainer) -> None:
    """Put LoRA or DoRA on the chosen linear layers, once the base is loaded."""
    if job.settings.method == "sft":
        return
    adapter = new_adapter(job.settings.method, job.settings.adapter, read_shape(job.hf))
    model.model_transform = adapter
    model.__io__.model_transform = adapter.__io__  # what the checkpoint's context records
    # The adapter itself is the callback, so that gradient buffers are made for it alone.
    trainer.callbacks.append(adapter)


def _optimizer(job: Job) -> nl.MegatronOptimizerModule:
    """AdamW with the schedule of the settings."""
    adam, ratio = job.settings.optimizer, plus_ratio(job.settings)
    config = OptimizerConfig(
        optimizer="adam",
        lr=job.settings.learning_rate,
        adam_beta1=adam.beta1,
        adam_beta2=adam.beta2,
        adam_eps=adam.eps,
        weight_decay=job.settings.weight_decay,
        clip_grad=job.settings.clip_grad,
        bf16=on_gpu(),
        fp16=False,
        use_distributed_optimizer=has_transformer_engine(),
        # Float32 weights without a second copy of their upper half; see master_weights.py.
        # Adapters' gradients are bfloat16, which Megatron's other optimizer copies to float32.
        use_precision_aware_optimizer=(
            has_transformer_engine()
            and job.settings.method == "sft"
            and job.settings.patches == "all"
        ),
    )
    # LoRA+: a group of parameters of its own for B, whose rate the recorder multiplies.
    groups = {} if ratio == 1 else {"scale_lr_cond": _is_b, "lr_mult": ratio}
    return nl.MegatronOptimizerModule(config, lr_scheduler=schedule(job.settings), **groups)


def _is_b(name: str, parameter: Any) -> bool:
    return name.endswith(".adapter.linear_out.weight")


def _scale_beforehand(
    model: GPTModel, optimizer: nl.MegatronOptimizerModule, tokens: Callable[[], int]
) -> None:
    """Divide each micro-batch's loss by the tokens of the global batch.

    Megatron divides the sums of the gradients instead, one more pass over all of them.
    """
    finalize = optimizer.finalize_model_grads

    def without_division(chunks: Any, num_tokens: Any = None, **options: Any) -> None:
        finalize(chunks, None, **options)

    optimizer.finalize_model_grads = without_division
    model.config.grad_scale_func = lambda loss: loss / tokens()


@contextmanager
def _readable_failures(job: Job) -> Iterator[None]:
    """Say what to do when memory runs out; raise KeyboardInterrupt where Lightning exits."""
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
    longest = int(load_rows(job.train_rows, job.settings.objective).lengths.max()) - 1
    memory = torch.cuda.get_device_properties().total_memory if on_gpu() else None
    return out_of_memory(job, longest, memory=memory)
