"""Opens an engine from a folder, or says why it cannot run here."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.config.engine import EngineConfig
from pipeline.core.artifact import sha256_of_file
from pipeline.core.errors import (
    ArtifactError,
    ConfigError,
    ResourceError,
)
from pipeline.core.hardware import inspect_machine
from pipeline.engines.base import Engine
from pipeline.engines.checkpoint import hf_checkpoint
from pipeline.engines.description import Description, describe_profile, rebuild
from pipeline.engines.hf.embedder import TOKENIZER, embeds, read_tokenizer
from pipeline.engines.memory import capacity, check_lengths, gib, read_decoder
from pipeline.engines.process.supervisor import SupervisedEngine
from pipeline.engines.registry import AUTO, ENGINES, first_with, named
from pipeline.engines.selection import find_profiles, select_profile
from pipeline.models.chat.renderer import Chat


@dataclass(frozen=True)
class Served:
    """An engine, with the chat that renders its prompts or the tokenizer of an embedding model."""

    engine: Engine
    chat: Chat | Tokenizer
    description: Description


def describe(folder: Path, engine: EngineConfig) -> Description:
    """The description of an engine that serves an HF folder as it is, without a build.

    Raises:
        ConfigError: no engine that `engine.name` allows loads HF folders of this format; or the
            lengths do not fit the model or each other.
        MissingRuntime: the engine is not installed. ResourceError: too little memory.
        DataError: the folder does not hold an HF model.
    """
    record = named(engine.name)
    if record and record.elsewhere:
        return record.elsewhere(engine, Chat.load(folder))
    if embeds(folder):
        return _describe_embedder(folder, engine)
    model = read_decoder(folder)
    check_lengths(engine, model.positions)
    found = find_profiles(
        model,
        [hf_checkpoint(folder)],
        engine,
        inspect_machine(),
        lora_rank=engine.lora_rank,
        measured={},
    )
    chosen = select_profile([p for p in found if not ENGINES[p.runtime].needs_build], engine)
    record = ENGINES[chosen.runtime]
    settings = record.settings(chosen, folder, engine)
    return describe_profile(
        chosen, engine, Chat.load(folder), record.version() or "", record.hardware(), settings
    )


def _describe_embedder(folder: Path, engine: EngineConfig) -> Description:
    """The description of an embedding model, which only one engine can serve."""
    record = first_with("embeddings")
    if engine.name not in (AUTO, record.name):
        raise ConfigError(
            f"{folder} is an embedding model: serve it with engine.name={record.name}"
        )
    read_tokenizer(folder)
    return Description(
        runtime=record.name,
        version=record.version() or "",
        precision="fp32",
        hardware=record.hardware(),
        rendering=sha256_of_file(folder / TOKENIZER),
        max_batch_size=1,
        max_input_len=engine.max_input_len,
        max_seq_len=engine.max_seq_len,
    )


def open_engine(folder: Path, *, max_queue: int, description: Description | None = None) -> Served:
    """Open what `stage=build` made, or a folder that `describe` described.

    Raises:
        ArtifactError: it is not complete, or was built for another runtime, hardware or rendering.
        ResourceError: it needs more memory than this machine has; the message gives both.
    """
    description = description or Description.read(folder)
    chat, rendering = _load_texts(folder, description)
    if rendering != description.rendering:
        raise ArtifactError(
            f"the tokenizer or chat template in {folder} is not the one that the engine was built "
            f"with, so prompts would differ from those in training: {rebuild(folder)}"
        )
    record = ENGINES[description.runtime]
    description.require(folder, record.version(), record.hardware())
    _require_memory(folder, description)
    engine: Engine
    if record.own_process:
        engine = record.open(folder, description, max_queue)
    else:
        engine = SupervisedEngine(folder, description, max_queue=max_queue)
    return Served(engine, chat, description)


def _load_texts(folder: Path, description: Description) -> tuple[Chat | Tokenizer, str]:
    """What turns requests into token ids, and its hash."""
    if "embeddings" in ENGINES[description.runtime].features and embeds(folder):
        return read_tokenizer(folder), sha256_of_file(folder / TOKENIZER)
    chat = Chat.load(folder)
    return chat, chat.sha256


def _require_memory(folder: Path, description: Description) -> None:
    """Refuse at once an engine that the kernel would kill later for lack of memory."""
    machine = inspect_machine()
    on_gpu = "gpu" in ENGINES[description.runtime].devices and description.precision != "fp32"
    here = capacity(machine, gpus=len(machine.gpus) if on_gpu else 0)
    if here and description.memory_bytes > here:
        raise ResourceError(
            f"{folder} needs {gib(description.memory_bytes)} for {description.max_batch_size} "
            f"sequences of {description.max_seq_len} tokens at a time, and this machine has "
            f"{gib(here)}: {gib(description.memory_bytes - here)} too little; lower "
            "engine.max_batch_size or engine.max_seq_len (`python -m pipeline stage=profiles` "
            "shows what fits) and build again"
        )
