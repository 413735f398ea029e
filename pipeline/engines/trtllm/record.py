"""What the pipeline must know of TensorRT-LLM (engines/record.py)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.engine import EngineConfig
from pipeline.core.console import get_console
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.core.secrets import expand
from pipeline.core.stage import Component
from pipeline.engines.base import Engine
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.description import Description
from pipeline.engines.memory import MemoryRule
from pipeline.engines.profile import Profile
from pipeline.engines.record import (
    BuildJob,
    EngineRecord,
    Site,
    gpu_here,
    size_mib,
    take_checkpoint,
    take_tokenizer,
)
from pipeline.engines.trtllm import build as trtllm

if TYPE_CHECKING:
    from pipeline.core.artifact import Outcome

# Its own names for vLLM's arguments.
_ARGUMENTS: Mapping[str, Callable[[Any], tuple[str, Any]]] = {
    "gpu_memory_utilization": lambda share: (
        "kv_cache_config",
        {"free_gpu_memory_fraction": share},
    ),
    "enable_prefix_caching": lambda on: ("kv_cache_config", {"enable_block_reuse": on}),
    "enforce_eager": lambda on: ("cuda_graph_config", None if on else {}),
}


def _profiles(checkpoints: Sequence[Checkpoint], site: Site) -> Iterator[Profile]:
    # A version that still builds engines prefers them; a newer one only loads HF folders.
    builds = trtllm.missing() is None or trtllm.llm_version() is None
    built = set()
    for checkpoint in checkpoints:
        if checkpoint.form == "qnemo":
            precision, gpus = checkpoint.precision, checkpoint.tensor_parallel or 1
            profile = Profile("trtllm", precision, gpus, 0, True, "qnemo")
            if builds or trtllm.not_loaded(precision):
                built.add(profile.name)
                yield profile
    for checkpoint in checkpoints:
        if checkpoint.form not in ("hf", "unified"):
            continue
        for rank in site.lora_ranks:
            # It supports adapters only on models that are not quantized.
            if rank and checkpoint.form != "hf":
                continue
            for gpus in site.groups:
                profile = Profile("trtllm", checkpoint.precision, gpus, rank, True, checkpoint.form)
                if profile.name not in built:
                    yield profile


def _missing(profile: Profile) -> str | None:
    return trtllm.missing() if profile.form == "qnemo" else trtllm.missing_llm()


def _not_loaded(profile: Profile) -> str | None:
    return None if profile.form == "qnemo" else trtllm.not_loaded(profile.precision)


def _settings(profile: Profile, checkpoint: Path, engine: EngineConfig) -> dict[str, Any]:
    arguments = trtllm.llm_arguments(engine, profile.tensor_parallel, built=False)
    return {"backend": "pytorch", "arguments": arguments}


def _build(job: BuildJob, out: Path) -> "Outcome":
    """Run trtllm-build on a qnemo checkpoint; HF folders are loaded as they are."""
    from pipeline.core.artifact import Outcome

    if job.profile.form != "qnemo":
        return take_checkpoint(job, out)

    def show(line: str) -> None:
        get_console().print(line, markup=False)

    made = trtllm.build(job.checkpoint, out, job.engine, show)
    chat = take_tokenizer(job.checkpoint, out)
    arguments = trtllm.llm_arguments(job.engine, job.profile.tensor_parallel, built=True)
    settings = {"backend": "tensorrt", "arguments": arguments, "built_with": made["command"]}
    job.describe(chat, settings, version=made["version"]).write(out)
    return Outcome("engine", {"engine_mib": size_mib(out)}, made)


def _open(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.trtllm.engine import TrtllmEngine

    return TrtllmEngine(
        folder,
        description.settings["backend"],
        expand(description.settings["arguments"]),
        max_input_len=description.max_input_len,
        max_seq_len=description.max_seq_len,
        max_queue=max_queue,
        lora_rank=description.lora_rank,
    )


def _unavailable(reason: str, engine: EngineConfig, exported: Path | None) -> PipelineError:
    if exported is None or not (exported / "qnemo").is_dir():
        return MissingRuntime(f"engine=trtllm: {reason}: run this stage where it can")
    return trtllm.refusal(reason, exported / "qnemo", engine)


def _from_vllm_arguments(given: Mapping[str, Any]) -> Mapping[str, Any]:
    named: dict[str, Any] = {}
    for name, value in given.items():
        key, value = _ARGUMENTS[name](value) if name in _ARGUMENTS else (name, value)
        named[key] = {**named.get(key, {}), **value} if isinstance(value, dict) else value
    return named


TRTLLM = EngineRecord(
    name="trtllm",
    component=Component(
        name="engine/trtllm",
        version=1,
        libraries=("tensorrt_llm",),
        modules=(
            "pipeline.engines.trtllm.record",
            "pipeline.engines.trtllm.build",
            "pipeline.engines.trtllm.engine",
        ),
    ),
    version=lambda: trtllm.llm_version(),
    open=_open,
    devices=("gpu",),
    features=frozenset({"adapters"}.union(*trtllm.FEATURES.values())),
    hardware=gpu_here,
    profiles=_profiles,
    missing=_missing,
    not_loaded=_not_loaded,
    least_capability=(8, 0),
    spreads=True,
    # Its free_gpu_memory_fraction applies to what the weights leave: this estimate is on the safe
    # side.
    memory=MemoryRule(paged=True, step_tokens=8192, gpu_share=0.9),
    build=_build,
    settings=_settings,
    disk="packed",
    package="tensorrt_llm",
    remedy=(f"docker run --rm -it --gpus all --ipc=host -v \"$PWD\":/src -w /src '{trtllm.IMAGE}'"),
    unavailable=_unavailable,
    nim_name="tensorrt_llm",
    from_vllm_arguments=_from_vllm_arguments,
)
