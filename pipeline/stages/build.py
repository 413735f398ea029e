"""Checkpoint → engine for this machine: TensorRT-LLM, vLLM, PyTorch or ONNX Runtime.

What is built is a profile (engines/selection.py). How, from which form of checkpoint, and how the
result is proven is part of the engine's record (engines/record.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.engine import EngineConfig
from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console
from pipeline.core.errors import DataError
from pipeline.core.hardware import inspect_machine
from pipeline.core.stage import Component, Stage
from pipeline.data.dataset import Row, read_split
from pipeline.engines.checkpoint import exported_checkpoints, hf_checkpoint
from pipeline.engines.description import Description
from pipeline.engines.memory import check_lengths, read_decoder
from pipeline.engines.profile import Profile
from pipeline.engines.record import BuildJob, Probes, size_mib, take_tokenizer
from pipeline.engines.registry import ENGINES, named
from pipeline.engines.selection import check_speculation, find_profiles, select_profile
from pipeline.models.chat.renderer import Chat
from pipeline.models.files import clear
from pipeline.models.sampling_defaults import write_defaults

STAGE = Stage(
    version=2,
    libraries=("tokenizers", "jinja2", "numpy"),
    less_memory="lower engine.max_batch_size",
)

# A built engine is compared with PyTorch on so many validation rows, and about so many positions in
# all of them: each has as many logits as the vocabulary has tokens.
PROBES, POSITIONS = 96, 1536


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
    built = _build(config, inputs, merged, out)
    # Clients that name no sampling get this one, and the benchmark measures the answers with it.
    sampling = write_defaults(merged, out, engine.sampling)
    return replace(built, proof={**built.proof, "sampling": sampling})


def _build(config: Config, inputs: Mapping[str, Artifact], merged: Path, out: Path) -> Outcome:
    engine = config.engine
    check_lengths(engine, read_decoder(merged).positions)
    exported = inputs["export"].require("exported").path
    clear(out)
    record = named(engine.name)
    if record:
        record.check_settings(engine)
        check_speculation(record, engine)
    if record and record.elsewhere:
        return _take_elsewhere(record.elsewhere, engine, merged, out)
    profile = _choose(config, merged, exported)
    get_console().print(f"building [bold]{profile.name}[/]")
    record = ENGINES[profile.runtime]

    def probes() -> Probes:
        rows = read_split(inputs["prepare"].require("dataset").path, "validation")
        return answer_probes(rows, engine.max_seq_len)

    return record.build(BuildJob(record, engine, profile, merged, exported, probes), out)


def answer_probes(rows: Sequence[Row], length: int) -> Probes:
    """Rows, evenly spread, and the positions in each that predict tokens to train on.

    length: tokens of a row that the engine takes.

    Raises:
        DataError: there are none.
    """
    found: list[tuple[list[int], list[int]]] = []
    for row in rows[:: max(1, len(rows) // PROBES)]:
        ids, mask = row.input_ids[:length], row.loss_mask[1:length]
        if at := [position for position, on in enumerate(mask) if on]:
            found.append((ids, at))
        if len(found) == PROBES or sum(len(at) for _, at in found) >= POSITIONS:
            break
    if not found:
        raise DataError(
            "the validation split has no answer that the engine is compared on: raise "
            "prepare.validation_share or engine.max_seq_len"
        )
    return found


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
