"""From a model's folder to a running engine, or to the reason why it cannot run here."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.config.engine import EngineConfig
from pipeline.core.artifact import sha256_of_file
from pipeline.core.console import get_console
from pipeline.core.errors import (
    ArtifactError,
    ConfigError,
    MissingRuntime,
    ResourceError,
)
from pipeline.core.hardware import inspect_machine
from pipeline.engines import registry as runtimes
from pipeline.engines.base import Engine
from pipeline.engines.description import Description, describe_profile, rebuild
from pipeline.engines.hf.embedder import TOKENIZER, embeds, read_tokenizer
from pipeline.engines.memory import capacity, check_lengths, gib, read_decoder
from pipeline.engines.process.supervisor import SupervisedEngine
from pipeline.engines.profile import RUNTIMES
from pipeline.engines.remote import description as remote
from pipeline.engines.selection import choose, explain, find_profiles
from pipeline.engines.servable import hf_checkpoint
from pipeline.engines.vllm import arguments as vllm
from pipeline.models.chat.renderer import Chat


@dataclass(frozen=True)
class Served:
    """An engine with the chat that renders for it, or the tokenizer of an embedding model."""

    engine: Engine
    chat: Chat | Tokenizer
    description: Description


def describe(folder: Path, engine: EngineConfig) -> Description:
    """What serving an HF folder as it is means, without a build.

    Raises:
        ConfigError: no runtime that `engine.name` allows opens HF folders of this format; or the
            lengths asked for do not fit the model or each other.
        MissingRuntime: it is not on this machine. ResourceError: too little memory.
        DataError: the folder is no HF model's.
    """
    if engine.name == "remote":
        return remote.describe(engine, Chat.load(folder))
    if embeds(folder):
        return _describe_embedder(folder, engine)
    model = read_decoder(folder)
    check_lengths(engine, model.positions)
    # ONNX Runtime serves only what stage=build made.
    profiles = [
        profile
        for profile in find_profiles(
            model,
            [hf_checkpoint(folder)],
            engine,
            inspect_machine(),
            lora_rank=engine.lora_rank,
            measured={},
        )
        if profile.runtime != "onnxruntime"
    ]
    try:
        chosen = choose(profiles, engine)
    except MissingRuntime as error:
        lacks_vllm = engine.name == "vllm" and vllm.missing()
        raise vllm.refusal(str(error)) if lacks_vllm else error from None
    for line in explain(profiles, chosen, engine):
        get_console().print(f"engine={engine.name}: {line}", markup=False, soft_wrap=True)
    version, hardware = runtimes.here(chosen.runtime)
    settings = runtimes.settings(chosen, folder, engine)
    return describe_profile(chosen, engine, Chat.load(folder), version or "", hardware, settings)


def _describe_embedder(folder: Path, engine: EngineConfig) -> Description:
    """Of an embedding model, which PyTorch alone serves here."""
    if engine.name not in ("auto", "hf"):
        raise ConfigError(f"{folder} makes embeddings: serve it with engine.name=hf")
    read_tokenizer(folder)
    version, hardware = runtimes.here("hf")
    return Description(
        runtime="hf",
        version=version or "",
        precision="fp32",
        hardware=hardware,
        rendering=sha256_of_file(folder / TOKENIZER),
        max_batch_size=1,
        max_input_len=engine.max_input_len,
        max_seq_len=engine.max_seq_len,
    )


def open_engine(folder: Path, *, max_queue: int, description: Description | None = None) -> Served:
    """Load what `stage=build` made, or a folder as `describe` said.

    Raises:
        ArtifactError: it is not whole, or was made for another runtime, hardware or rendering.
        ResourceError: it takes more memory than is here; the message gives both.
    """
    description = description or Description.read(folder)
    chat, rendering = _load_texts(folder, description)
    if rendering != description.rendering:
        raise ArtifactError(
            f"the tokenizer or chat template in {folder} is not the one that the engine was built "
            f"with, so prompts would differ from those in training: {rebuild(folder)}"
        )
    description.require(folder, *runtimes.here(description.runtime))
    _require_memory(folder, description)
    engine: Engine
    if description.runtime in runtimes.OF_THEIR_OWN:
        engine = runtimes.open_runtime(folder, description, max_queue=max_queue)
    else:
        engine = SupervisedEngine(folder, description, max_queue=max_queue)
    return Served(engine, chat, description)


def _load_texts(folder: Path, description: Description) -> tuple[Chat | Tokenizer, str]:
    """What makes token ids of requests, and its hash."""
    if description.runtime == "hf" and embeds(folder):
        return read_tokenizer(folder), sha256_of_file(folder / TOKENIZER)
    chat = Chat.load(folder)
    return chat, chat.sha256


def _require_memory(folder: Path, description: Description) -> None:
    """Refuse at once what would end in the kernel's killing the engine later."""
    machine = inspect_machine()
    on_gpu = description.runtime in RUNTIMES and description.precision != "fp32"
    here = capacity(machine, gpus=len(machine.gpus) if on_gpu else 0)
    if here and description.memory_bytes > here:
        raise ResourceError(
            f"{folder} takes {gib(description.memory_bytes)} with {description.max_batch_size} "
            f"answers of {description.max_seq_len} tokens at once, and here are {gib(here)}: "
            f"{gib(description.memory_bytes - here)} too little; lower engine.max_batch_size or "
            "engine.max_seq_len (`python -m pipeline stage=profiles` shows what fits) and build "
            "again"
        )
