"""Checkpoint → engine for this machine: TensorRT-LLM, vLLM, PyTorch or ONNX Runtime.

What is built is a profile (engines/selection.py). How, from which form of checkpoint, and how the
result is proven is part of the engine's record (engines/record.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.config.engine import EngineConfig
from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console
from pipeline.core.hardware import inspect_machine
from pipeline.core.stage import Component, Stage
from pipeline.engines.checkpoint import exported_checkpoints, hf_checkpoint
from pipeline.engines.description import Description
from pipeline.engines.memory import check_lengths, read_decoder
from pipeline.engines.profile import Profile
from pipeline.engines.record import BuildJob, size_mib, take_tokenizer
from pipeline.engines.registry import ENGINES, named
from pipeline.engines.selection import find_profiles, select_profile
from pipeline.models.chat.renderer import Chat
from pipeline.models.files import clear

STAGE = Stage(
    version=1,
    libraries=("tokenizers", "jinja2", "numpy"),
    less_memory="lower engine.max_batch_size",
)


def components(config: Config) -> tuple[Component, ...]:
    """The engine that is built. `auto` may choose any local engine, so it depends on all."""
    if record := named(config.engine.name):
        return (record.component,)
    return tuple(record.component for record in ENGINES.values() if not record.elsewhere)


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """See pipeline/stages/__init__.py.

    Raises:
        MissingRuntime: the engine's runtime is not installed; says how to get it.
        ResourceError: there is too little memory; says how much is missing and what would fit.
        ProofFailed: the engine's outputs differ from PyTorch's.
    """
    engine = config.engine
    merged = inputs["merge"].require("hf_checkpoint").path
    check_lengths(engine, read_decoder(merged).positions)
    exported = inputs["export"].require("exported").path
    clear(out)
    record = named(engine.name)
    if record:
        record.check_settings(engine)
    if record and record.elsewhere:
        return _take_elsewhere(record.elsewhere, engine, merged, out)
    profile = _choose(config, merged, exported)
    get_console().print(f"building [bold]{profile.name}[/]")
    record = ENGINES[profile.runtime]
    return record.build(BuildJob(record, engine, profile, merged, exported), out)


def _choose(config: Config, merged: Path, exported: Path) -> Profile:
    """The profile to build; prints why the better ones cannot run here."""
    from pipeline.engines.benchmark_history import measured_here

    engine, machine = config.engine, inspect_machine()
    model = read_decoder(merged)
    profiles = find_profiles(
        model,
        [hf_checkpoint(merged), *exported_checkpoints(exported)],
        engine,
        machine,
        lora_rank=engine.lora_rank,
        measured=measured_here(config.artifacts, model, machine),
    )
    return select_profile(profiles, engine, exported=exported)


def _take_elsewhere(
    describe: Callable[[EngineConfig, Chat], Description],
    engine: EngineConfig,
    model: Path,
    out: Path,
) -> Outcome:
    """The tokenizer and template that requests to another server are rendered with."""
    chat = take_tokenizer(model, out)
    described = describe(engine, chat)
    described.write(out)
    return Outcome("engine", {"engine_mib": size_mib(out)}, dict(described.settings))
