"""From a model's folder to a running engine, or to the reason why it cannot run here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.adapters import onnxruntime_session, trtllm, vllm
from pipeline.chat import Chat
from pipeline.config import EngineConfig
from pipeline.errors import ArtifactError, ConfigError
from pipeline.serving.description import Description, gpu_here, rebuild
from pipeline.serving.engine import Engine
from pipeline.serving.runtimes import OF_THEIR_OWN, OPENERS, open_runtime
from pipeline.serving.supervised import SupervisedEngine


@dataclass(frozen=True)
class Served:
    """An engine with the chat that renders for it."""

    engine: Engine
    chat: Chat
    description: Description


def describe(folder: Path, engine: EngineConfig, *, tensor_parallel: int = 1) -> Description:
    """What serving an HF folder as it is means, without a build: `engine.name` runs it.

    Raises:
        ConfigError: the runtime opens no HF folder, or not this one's format.
        MissingRuntime: it is not on this machine.
    """
    if engine.name != "vllm":
        raise ConfigError(
            f"engine={engine.name} cannot open {folder} as it is: choose engine=vllm, or build "
            "an engine first with `python -m pipeline stage=build`"
        )
    arguments = vllm.profile(folder, engine, tensor_parallel)
    if reason := vllm.missing():
        raise vllm.refusal(reason)
    return Description(
        runtime=engine.name,
        version=vllm.version() or "",
        precision=vllm.quantization_of(folder)[0] or "none",
        hardware=gpu_here(),
        rendering=Chat.load(folder).sha256,
        max_batch_size=engine.max_batch_size,
        max_input_len=engine.max_input_len,
        max_seq_len=engine.max_seq_len,
        settings={"arguments": {**arguments, **engine.arguments}},
    )


def open_engine(folder: Path, *, max_queue: int, description: Description | None = None) -> Served:
    """Load what `stage=build` made, or a folder as `describe` said.

    Raises:
        ArtifactError: it is not whole, or was made for another runtime, hardware or rendering.
        ConfigError: its runtime serves by its own command, which the message gives.
    """
    description = description or Description.read(folder)
    chat = Chat.load(folder)
    if chat.sha256 != description.rendering:
        raise ArtifactError(
            f"the tokenizer or chat template in {folder} is not the one that the engine was built "
            f"with, so prompts would differ from those in training: {rebuild(folder)}"
        )
    description.require(folder, *_here(description.runtime))
    if description.runtime not in OPENERS:
        command = description.settings["serve_with"].format(folder=folder)
        raise ConfigError(
            f"{folder} is an engine of {description.runtime}, which serves by its own command: "
            f"`{command}`; or build with engine=onnxruntime"
        )
    engine: Engine
    if description.runtime in OF_THEIR_OWN:
        engine = open_runtime(folder, description, max_queue=max_queue)
    else:
        engine = SupervisedEngine(folder, description, max_queue=max_queue)
    return Served(engine, chat, description)


def _here(runtime: str) -> tuple[str | None, Mapping[str, str]]:
    """The version of a runtime on this machine, None without it, and what it would run on."""
    if runtime == "onnxruntime":
        return onnxruntime_session.runtime_version(), onnxruntime_session.hardware()
    return {"trtllm": trtllm, "vllm": vllm}[runtime].version(), gpu_here()
