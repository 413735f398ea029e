"""The runtimes that can answer: how each opens a folder, in this process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.hardware import inspect_machine, installed_version
from pipeline.engines.base import Engine
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.engines.description import Description, gpu_here
from pipeline.engines.onnxruntime import session as onnxruntime_session
from pipeline.engines.profile import Profile
from pipeline.engines.remote import description as remote
from pipeline.engines.trtllm import build as trtllm
from pipeline.engines.vllm import arguments as vllm
from pipeline.models.chat.renderer import Chat


def open_runtime(folder: Path, description: Description, *, max_queue: int) -> Engine:
    """The engine of a folder, for which the description was found to be right."""
    return OPENERS[description.runtime](folder, description, max_queue)


def _open_onnxruntime(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.onnxruntime.session import DecoderSession

    threads = max(1, int(inspect_machine().cores))
    slots, length = description.max_batch_size, description.max_seq_len
    model = DecoderSession(folder, slots, length, threads=threads)
    return BatchingEngine(
        model,
        max_input_len=description.max_input_len,
        max_queue=max_queue,
        guides=Guides(Chat.load(folder)),
    )


def _open_hf(folder: Path, description: Description, max_queue: int) -> Engine:
    import torch

    from pipeline.engines.hf.embedder import HfEmbedder, embeds
    from pipeline.engines.hf.lora import AdaptedHfSession
    from pipeline.engines.hf.session import HfSession, is_quantized

    torch.set_num_threads(max(1, int(inspect_machine().cores)))
    if embeds(folder):
        return HfEmbedder(folder, max_queue=max_queue)
    session = HfSession if is_quantized(folder) else AdaptedHfSession
    return BatchingEngine(
        session(folder, description.max_batch_size, description.max_seq_len),
        max_input_len=description.max_input_len,
        max_queue=max_queue,
        guides=Guides(Chat.load(folder)),
    )


def _open_vllm(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.vllm.engine import VllmEngine

    return VllmEngine(
        folder,
        description.settings["arguments"],
        max_input_len=description.max_input_len,
        max_queue=max_queue,
    )


def _open_trtllm(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.trtllm.engine import TrtllmEngine

    return TrtllmEngine(
        folder,
        description.settings["backend"],
        description.settings["arguments"],
        max_input_len=description.max_input_len,
        max_seq_len=description.max_seq_len,
        max_queue=max_queue,
        lora_rank=description.lora_rank,
    )


def _open_remote(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.remote.engine import RemoteEngine

    return RemoteEngine(Chat.load(folder), description, max_queue=max_queue)


OPENERS: Mapping[str, Callable[[Path, Description, int], Engine]] = {
    "onnxruntime": _open_onnxruntime,
    "hf": _open_hf,
    "trtllm": _open_trtllm,
    "vllm": _open_vllm,
    "remote": _open_remote,
}
# They run their models in a process of their own already, or on another machine.
OF_THEIR_OWN = ("vllm", "remote")


def here(runtime: str) -> tuple[str | None, Mapping[str, str]]:
    """The version of a runtime on this machine, None without it, and what an engine is bound to."""
    if runtime == "onnxruntime":
        return onnxruntime_session.runtime_version(), onnxruntime_session.hardware()
    if runtime == "hf":
        return installed_version("transformers"), {}
    if runtime == "remote":
        return remote.VERSION, {}
    return (vllm.version() if runtime == "vllm" else trtllm.llm_version()), gpu_here()


def settings(profile: Profile, checkpoint: Path, engine: EngineConfig) -> dict[str, Any]:
    """How a profile's runtime is to load an HF folder (Description.settings)."""
    tensor_parallel = profile.tensor_parallel
    if profile.runtime == "vllm":
        return {"arguments": vllm.profile(checkpoint, engine, tensor_parallel)}
    if profile.runtime == "trtllm":
        arguments = trtllm.llm_arguments(engine, tensor_parallel, built=False)
        return {"backend": "pytorch", "arguments": arguments}
    return {}
