"""NeMo and Megatron-Core in this process: imported, quiet, and able to run on a CPU.

with nemo_session():      # around all code that uses them, and imports of modules that import them
    ...
"""

from __future__ import annotations

import gc
import logging as std_logging
import os
import queue
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any, Literal

from pipeline.core.compilation import compile_in_this_process
from pipeline.core.import_blocking import absent, bytecode_written, stand_in, unless_found
from pipeline.core.monkeypatch import Patch, Replacement, replaced
from pipeline.training.nemo.patches import records
from pipeline.training.nemo.patches.checkpoint_load import read_in_threads
from pipeline.training.nemo.patches.checkpoint_save import write_in_threads
from pipeline.training.nemo.patches.cpu import cpu_megatron

EXTRA_STATE = "._extra_state"
# Optional packages that NeMo and its libraries import where they are installed (jax through
# Transformer Engine): a tenth of the modules, and nothing in them is used here.
_UNUSED = ("jax", "modelopt", "sklearn", "wandb")
_FOR_GPUS = ("transformer_engine", "transformer_engine_torch")  # they fail without a GPU

_imported = False


class _Metric:
    """In place of the classes of torchmetrics: nothing is an instance of it."""


# Process groups of earlier sessions, and the models that refer to them, are garbage that Python
# collects late. Each group has three threads, which wake up a hundred times a second.
MOST_THREADS = 150


@contextmanager
def nemo_session(patches: Literal["all", "none"] = "all") -> Iterator[None]:
    """NeMo, imported and quiet, on this machine's GPU or CPU. Ends its process groups on leaving.

    patches: "none" applies only those without which nothing runs. A process imports NeMo once, so
        the first session decides how.

    Raises:
        RuntimeError: NeMo or Megatron-Core was imported before.
    """
    _import_quietly(patches)
    if len(os.listdir("/proc/self/task")) > MOST_THREADS:
        gc.collect()
    replacements = _required()
    if patches == "all":
        replacements += [*write_in_threads(queue.Queue()), *read_in_threads()]
    gc.freeze()  # the garbage collector need not scan the modules
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(replaced(replacements))
        stack.enter_context(_without(records.MODELOPT_STATE))
        if patches == "all":
            stack.enter_context(_without(records.MODELOPT_SHAPES))
        stack.enter_context(cpu_megatron())
        try:
            yield
        finally:
            _end_process_groups()
            gc.unfreeze()  # or garbage that refers to frozen objects would stay


def _required() -> list[Replacement]:
    import numpy

    from pipeline.training.nemo.patches.checkpoint_safety import safe_checkpoints
    from pipeline.training.nemo.patches.dora_experts import dora_of_rows

    extra = records.EXTRA_STATES
    state_of = extra.original("_module_sharded_state_dict")

    def weights_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {n: t for n, t in state_of(*args, **kwargs).items() if not n.endswith(EXTRA_STATE)}

    replacements = [*safe_checkpoints(), *extra.by(_module_sharded_state_dict=weights_of)]
    replacements += dora_of_rows()
    if not hasattr(numpy, "product"):
        replacements += records.NUMPY_PRODUCT.by(product=numpy.prod)
    return replacements


def _import_quietly(patches: Literal["all", "none"]) -> None:
    """Import NeMo, once, without the INFO logs that it and its libraries write at each step."""
    global _imported
    if _imported:
        return
    if before := {"megatron.core", "nemo"} & sys.modules.keys():
        # Imported without the contexts below it is up to three times slower.
        raise RuntimeError(f"{min(before)} was imported outside nemo_session()")
    collecting = gc.isenabled()
    compile_in_this_process()
    with ExitStack() as stack:
        stack.enter_context(bytecode_written())
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(absent(*_hidden(patches)))
        if patches == "all":
            metrics = dict.fromkeys(records.TORCHMETRICS.names, _Metric)
            stack.enter_context(stand_in(records.TORCHMETRICS.owner, **metrics))
            stack.enter_context(_nothing_compiled())
        std_logging.disable(std_logging.WARNING)
        gc.disable()  # 8,800 modules make no garbage; scanning them takes a tenth of the time
        try:
            import nemo.collections.llm  # noqa: F401
            from nemo.utils import logging
        finally:
            std_logging.disable(std_logging.NOTSET)
            if collecting:
                gc.enable()
    _imported = True
    logging.setLevel(logging.ERROR)
    for name in ("lightning", "pytorch_lightning", "megatron", "torch.distributed"):
        for logger in (name, f"{name}.pytorch", f"{name}.fabric"):
            std_logging.getLogger(logger).setLevel(std_logging.ERROR)


def _without(patch: Patch) -> AbstractContextManager[None]:
    """NeMo's part for ModelOpt without ModelOpt; ModelOpt quantizes HF models here."""

    def nothing(*arguments: Any, **options: Any) -> None: ...

    return stand_in(patch.owner, **dict.fromkeys(patch.names, nothing))


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("nothing is compiled while libraries are imported")

    with replaced(records.COMPILED_EXTENSIONS.by(load_inline=refuse)):
        yield


def _hidden(patches: Literal["all", "none"]) -> tuple[str, ...]:
    """Packages that NeMo must not find when it is imported."""
    unused: tuple[str, ...] = _UNUSED if patches == "all" else ()
    if not unless_found("sklearn"):
        unused = tuple(name for name in unused if name != "sklearn")
    return unused if on_gpu() else (*unused, *_FOR_GPUS)


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
    """Whether the layers on this machine are Transformer Engine's, not Megatron's own."""
    return on_gpu() and find_spec("transformer_engine") is not None
