"""What the pipeline must know of vLLM (engines/record.py)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.core.secrets import expand
from pipeline.core.stage import Component
from pipeline.engines.base import Engine
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.description import Description
from pipeline.engines.memory import MemoryRule
from pipeline.engines.profile import Profile
from pipeline.engines.record import EngineRecord, Site, gpu_here
from pipeline.engines.vllm import arguments


def _profiles(checkpoints: Sequence[Checkpoint], site: Site) -> Iterator[Profile]:
    for checkpoint in checkpoints:
        if checkpoint.form in ("hf", "unified"):
            for rank in site.lora_ranks:
                for gpus in site.groups:
                    yield Profile("vllm", checkpoint.precision, gpus, rank, True, checkpoint.form)


def _settings(profile: Profile, checkpoint: Path, engine: EngineConfig) -> dict[str, Any]:
    return {"arguments": arguments.profile(checkpoint, engine, profile.tensor_parallel)}


def _open(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.vllm.engine import VllmEngine

    return VllmEngine(
        folder,
        expand(description.settings["arguments"]),
        max_input_len=description.max_input_len,
        max_queue=max_queue,
    )


def _unavailable(reason: str, engine: EngineConfig, exported: Path | None) -> PipelineError:
    return arguments.refusal(reason) if arguments.missing() else MissingRuntime(reason)


VLLM = EngineRecord(
    name="vllm",
    component=Component(
        name="engine/vllm",
        version=1,
        libraries=("vllm",),
        modules=(
            "pipeline.engines.vllm.record",
            "pipeline.engines.vllm.arguments",
            "pipeline.engines.vllm.engine",
        ),
    ),
    version=lambda: arguments.version(),
    open=_open,
    devices=("gpu",),
    features=arguments.FEATURES,
    hardware=gpu_here,
    profiles=_profiles,
    missing=lambda profile: arguments.missing(),
    not_loaded=lambda profile: arguments.not_loaded(profile.precision),
    check_settings=lambda engine: arguments.check_rank(engine.lora_rank),
    least_capability=(7, 5),
    spreads=True,
    # Its gpu_memory_utilization, and max_num_batched_tokens on large GPUs.
    memory=MemoryRule(paged=True, step_tokens=8192, gpu_share=0.9),
    settings=_settings,
    own_process=True,
    package="vllm",
    remedy="pip install vllm==0.24.0 (in an environment of its own: it pins torch 2.11.0)",
    unavailable=_unavailable,
    from_vllm_arguments=lambda given: given,
)
