"""The runtimes that can answer: how each opens a folder, in this process."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.chat import Chat
from pipeline.hardware import inspect_machine
from pipeline.serving.batching import BatchingEngine
from pipeline.serving.description import Description
from pipeline.serving.engine import Engine
from pipeline.serving.guidance import Guides


def open_runtime(folder: Path, description: Description, *, max_queue: int) -> Engine:
    """The engine of a folder, for which the description was found to be right."""
    return OPENERS[description.runtime](folder, description, max_queue)


def _open_onnxruntime(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.adapters.onnxruntime_session import DecoderSession

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

    from pipeline.adapters.hf_adapters import AdaptedHfSession
    from pipeline.adapters.hf_embedder import HfEmbedder, embeds
    from pipeline.adapters.hf_session import HfSession, is_quantized

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
    from pipeline.adapters.vllm_engine import VllmEngine

    return VllmEngine(
        folder,
        description.settings["arguments"],
        max_input_len=description.max_input_len,
        max_queue=max_queue,
    )


OPENERS: Mapping[str, Callable[[Path, Description, int], Engine]] = {
    "onnxruntime": _open_onnxruntime,
    "hf": _open_hf,
    "vllm": _open_vllm,
}
# They run their models in a process of their own already, or on another machine.
OF_THEIR_OWN = ("vllm",)
