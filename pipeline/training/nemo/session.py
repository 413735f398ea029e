"""NeMo and Megatron-Core in this process: imported, quiet, and fit for a CPU.

with nemo_session():      # around all that uses them, and imports what imports them
    ...
"""

from __future__ import annotations

import gc
import logging as std_logging
import queue
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from pipeline.core.import_blocking import absent, stand_in
from pipeline.core.monkeypatch import Patch, replaced
from pipeline.training.nemo.patches.checkpoint_load import in_threads
from pipeline.training.nemo.patches.checkpoint_save import written_in_threads
from pipeline.training.nemo.patches.cpu import cpu_megatron

EXTRA_STATE = "._extra_state"
# Optional packages that NeMo and its libraries (Transformer Engine: jax) import where they are: a
# tenth of the modules, and nothing in them is used here.
_UNUSED = ("jax", "modelopt", "sklearn", "wandb")
_FOR_GPUS = ("transformer_engine", "transformer_engine_torch")  # refuses to work without one


class _Metric:
    """In place of torchmetrics' (600 modules): Lightning asks what is an instance, nothing is."""


@contextmanager
def nemo_session() -> Iterator[None]:
    """NeMo, imported and quiet, on this machine's GPU or CPU; its process groups end with it.

    Raises:
        RuntimeError: NeMo or Megatron-Core was imported before.
    """
    _import_quietly()
    import numpy
    from nemo.lightning.megatron_parallel import MegatronParallel
    from torch.distributed.checkpoint import FileSystemReader

    state_of = MegatronParallel._module_sharded_state_dict

    def weights_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {n: t for n, t in state_of(*args, **kwargs).items() if not n.endswith(EXTRA_STATE)}

    patches: list[Patch] = [
        *written_in_threads(queue.Queue()),
        # Only Transformer Engine's layers have this state (of FP8 training). Without it a
        # checkpoint holds the same, and can be opened, with them and with Megatron's own layers.
        (MegatronParallel, "_module_sharded_state_dict", weights_of),
        (FileSystemReader, "read_data", in_threads(FileSystemReader.read_data)),
        # Ranks that share the writing of a checkpoint call it by the name that NumPy 2 dropped.
        (numpy, "product", numpy.prod),
    ]
    gc.freeze()  # no modules where garbage is looked for
    quiet = warnings.catch_warnings(action="ignore")
    with quiet, replaced(patches), _modelopt_unasked(), cpu_megatron():
        try:
            yield
        finally:
            _end_process_groups()
            gc.unfreeze()  # or garbage that refers to what was there before would stay


@cache
def _import_quietly() -> None:
    """Import NeMo. It and its libraries tell every step at INFO; a stage tells what matters."""
    if before := {"megatron.core", "nemo"} & sys.modules.keys():
        # Without what follows that is up to three times as slow.
        raise RuntimeError(f"{min(before)} was imported outside nemo_session()")
    collecting = gc.isenabled()
    with (
        warnings.catch_warnings(action="ignore"),
        absent(*_unused()),
        stand_in("torchmetrics", Metric=_Metric, MetricCollection=_Metric),
        _nothing_compiled(),
    ):
        std_logging.disable(std_logging.WARNING)
        gc.disable()  # 8,800 modules make no garbage, and looking for it takes a tenth of the time
        try:
            import nemo.collections.llm  # noqa: F401
            from nemo.utils import logging
        finally:
            std_logging.disable(std_logging.NOTSET)
            if collecting:
                gc.enable()
    logging.setLevel(logging.ERROR)
    for name in ("lightning", "pytorch_lightning", "megatron", "torch.distributed"):
        for logger in (name, f"{name}.pytorch", f"{name}.fabric"):
            std_logging.getLogger(logger).setLevel(std_logging.ERROR)


@contextmanager
def _modelopt_unasked() -> Iterator[None]:
    """NeMo's part for ModelOpt without ModelOpt, of which it asks whether it changed a model.

    Nothing has: ModelOpt quantizes HF models here. Importing it takes seconds, by when there is a
    model, and exceptions that libraries keep of it keep the stack as well, and so the model.
    """

    def nothing(*arguments: Any, **options: Any) -> None: ...

    part = "nemo.collections.llm.modelopt"
    state = {"restore_modelopt_state": nothing, "save_modelopt_state": nothing}
    shapes = {"get_tensor_shapes_adjust_fn_for_distillation": nothing}
    with stand_in(f"{part}.model_utils", **state), stand_in(f"{part}.distill.utils", **shapes):
        yield


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Megatron-Core compiles an allocator for inference when it is imported: ten seconds on a GPU.

    It goes without where the compiler fails (core/inference/unified_memory.py).
    """
    from torch.utils import cpp_extension

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("nothing is compiled while libraries are imported")

    with replaced([(cpp_extension, "load_inline", refuse)]):
        yield


def _unused() -> tuple[str, ...]:
    return _UNUSED if on_gpu() else (*_UNUSED, *_FOR_GPUS)


def _end_process_groups() -> None:
    import torch
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def has_transformer_engine() -> bool:
    """Whether the layers are Transformer Engine's on this machine, not Megatron's own."""
    return on_gpu() and find_spec("transformer_engine") is not None
