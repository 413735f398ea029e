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
from pipeline.core.gpu_use import gpu_use
from pipeline.core.hardware import free_memory_bytes, inspect_machine
from pipeline.engines.base import Engine
from pipeline.engines.checkpoint import hf_checkpoint
from pipeline.engines.description import Description, describe_profile, rebuild
from pipeline.engines.hf.embedder import embeds
from pipeline.engines.hf.encoder import TOKENIZER, read_tokenizer
from pipeline.engines.hf.scorer import scores
from pipeline.engines.memory import capacity, check_lengths, gib, read_decoder
from pipeline.engines.process.supervisor import SupervisedEngine
from pipeline.engines.registry import AUTO, ENGINES, first_with, named
from pipeline.engines.selection import check_speculation, find_profiles, select_profile
from pipeline.models.chat.renderer import Chat


@dataclass(frozen=True)
class Served:
    """An engine, with the chat that renders its prompts, or a tokenizer if it generates no text."""

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
    if record:
        check_speculation(record, engine)
    if record and record.elsewhere:
        return record.elsewhere(engine, Chat.load(folder))
    if scores(folder):
        return _describe_encoder(folder, engine, "scores", "a reranker")
    if embeds(folder):
        return _describe_encoder(folder, engine, "embeddings", "an embedding model")
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


def _describe_encoder(folder: Path, engine: EngineConfig, feature: str, kind: str) -> Description:
    """The description of a model that writes no text, which only one engine can serve."""
    record = first_with(feature)
    if engine.name not in (AUTO, record.name):
        raise ConfigError(f"{folder} is {kind}: serve it with engine.name={record.name}")
    if engine.speculative != "none":
        raise ConfigError(
            f"engine.speculative={engine.speculative} has no effect: {folder} is {kind}, which "
            "writes no text: leave it out"
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


def lacks_memory(folder: Path) -> str | None:
    """Why an engine cannot be opened beside what runs here now; None if it can, or if it is not
    known what it needs.
    """
    description = Description.read(folder)
    if not description.memory_bytes:
        return None
    place, here = "memory", free_memory_bytes()
    if _is_on_gpu(description) and (gpus := gpu_use()):
        freest = sorted((gpu.free for gpu in gpus), reverse=True)[: description.tensor_parallel]
        place, here = "GPU memory", freest[-1] if len(freest) == description.tensor_parallel else 0
    if not here or description.memory_bytes <= here:
        return None
    return (
        f"there is no room for two: it needs {gib(description.memory_bytes)} of {place}, and "
        f"{gib(here)} are free; restart the server, and it serves this version"
    )


def _is_on_gpu(description: Description) -> bool:
    return "gpu" in ENGINES[description.runtime].devices and description.precision != "fp32"


def _load_texts(folder: Path, description: Description) -> tuple[Chat | Tokenizer, str]:
    """What turns requests into token ids, and its hash."""
    features = ENGINES[description.runtime].features
    if ("embeddings" in features and embeds(folder)) or ("scores" in features and scores(folder)):
        return read_tokenizer(folder), sha256_of_file(folder / TOKENIZER)
    chat = Chat.load(folder)
    return chat, chat.sha256


def _require_memory(folder: Path, description: Description) -> None:
    """Refuse at once an engine that the kernel would kill later for lack of memory."""
    machine = inspect_machine()
    here = capacity(machine, gpus=len(machine.gpus) if _is_on_gpu(description) else 0)
    if here and description.memory_bytes > here:
        raise ResourceError(
            f"{folder} needs {gib(description.memory_bytes)} for {description.max_batch_size} "
            f"sequences of {description.max_seq_len} tokens at a time, and this machine has "
            f"{gib(here)}: {gib(description.memory_bytes - here)} too little; lower "
            "engine.max_batch_size or engine.max_seq_len (`python -m pipeline stage=profiles` "
            "shows what fits) and build again"
        )
