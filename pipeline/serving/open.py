"""From an engine's folder to a running engine, or to the reason why it cannot run here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.adapters import onnxruntime_session, trtllm, vllm
from pipeline.chat import Chat
from pipeline.errors import ArtifactError, ConfigError
from pipeline.hardware import inspect_machine
from pipeline.serving.batching import BatchingEngine
from pipeline.serving.description import Description, gpu_here, rebuild
from pipeline.serving.engine import Engine


@dataclass(frozen=True)
class Served:
    """An engine with the chat that renders for it."""

    engine: Engine
    chat: Chat
    description: Description


def open_engine(folder: Path, *, max_queue: int) -> Served:
    """Load what `stage=build` made.

    Raises:
        ArtifactError: it is not whole, or was made for another runtime, hardware or rendering.
        ConfigError: its runtime serves by its own command, which the message gives.
    """
    description = Description.read(folder)
    chat = Chat.load(folder)
    if chat.sha256 != description.rendering:
        raise ArtifactError(
            f"the tokenizer or chat template in {folder} is not the one that the engine was built "
            f"with, so prompts would differ from those in training: {rebuild(folder)}"
        )
    description.require(folder, *_here(description.runtime))
    if description.runtime != "onnxruntime":
        command = description.settings["serve_with"].format(folder=folder)
        raise ConfigError(
            f"{folder} is an engine of {description.runtime}, which serves by its own command: "
            f"`{command}`; or build with engine=onnxruntime"
        )
    model = onnxruntime_session.DecoderSession(
        folder,
        description.max_batch_size,
        description.max_seq_len,
        threads=max(1, int(inspect_machine().cores)),
    )
    engine = BatchingEngine(model, max_input_len=description.max_input_len, max_queue=max_queue)
    return Served(engine, chat, description)


def _here(runtime: str) -> tuple[str | None, Mapping[str, str]]:
    """The version of a runtime on this machine, None without it, and what it would run on."""
    if runtime == "onnxruntime":
        return onnxruntime_session.runtime_version(), onnxruntime_session.hardware()
    return {"trtllm": trtllm, "vllm": vllm}[runtime].version(), gpu_here()
