"""What the pipeline must know of PyTorch with transformers as an engine (engines/record.py)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.core import hardware
from pipeline.core.hardware import GIB
from pipeline.core.stage import Component
from pipeline.engines.base import Engine
from pipeline.engines.batching.model_runner import FEATURES
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.description import Description
from pipeline.engines.memory import MemoryRule
from pipeline.engines.profile import Profile
from pipeline.engines.record import EngineRecord, Site, not_installed, speculation


def _profiles(checkpoints: Sequence[Checkpoint], site: Site) -> Iterator[Profile]:
    # PyTorch uses a GPU if there is one.
    on_gpu = site.gpus and _torch_has_cuda()
    for checkpoint in checkpoints:
        form = checkpoint.form
        for rank in site.lora_ranks:
            if form == "hf" or (form == "modelopt" and not rank):
                if on_gpu or checkpoint.precision != "fp32":
                    yield Profile("hf", checkpoint.precision, 1, rank, True, form)
                if not on_gpu:
                    yield Profile("hf", "fp32", 1, rank, False, form)


def _missing(profile: Profile) -> str | None:
    if profile.gpu and not _torch_has_cuda():
        return not_installed("transformers") or "PyTorch is installed without CUDA"
    return not_installed("transformers")


def _torch_has_cuda() -> bool:
    return not (hardware.installed_version("torch") or "+cpu").endswith("+cpu")


def _open(folder: Path, description: Description, max_queue: int) -> Engine:
    import torch

    from pipeline.engines.batching.guided_decoding import Guides
    from pipeline.engines.batching.scheduler import BatchingEngine
    from pipeline.engines.hf.embedder import HfEmbedder, embeds
    from pipeline.engines.hf.lora import LoraHfSession
    from pipeline.engines.hf.scorer import HfScorer, scores
    from pipeline.engines.hf.session import HfSession, is_quantized
    from pipeline.models.chat.renderer import Chat

    torch.set_num_threads(max(1, int(hardware.inspect_machine().cores)))
    if scores(folder):
        return HfScorer(folder, max_queue=max_queue)
    if embeds(folder):
        return HfEmbedder(folder, max_queue=max_queue)
    session = HfSession if is_quantized(folder) else LoraHfSession
    return BatchingEngine(
        session(folder, description.max_batch_size, description.max_seq_len),
        max_input_len=description.max_input_len,
        max_queue=max_queue,
        guides=Guides(Chat.load(folder)),
        speculative_tokens=description.settings.get("speculative_tokens", 0),
    )


HF = EngineRecord(
    name="hf",
    component=Component(
        name="engine/hf",
        version=1,
        libraries=("torch", "transformers", "nvidia-modelopt", "peft", "tokenizers"),
        modules=(
            "pipeline.engines.hf.record",
            "pipeline.engines.hf.session",
            "pipeline.engines.hf.flat_cache",
            "pipeline.engines.hf.flash",
            "pipeline.engines.hf.graphs",
            "pipeline.engines.hf.fusing",
            "pipeline.engines.hf.decode_kernels",
            "pipeline.engines.hf.lora",
            "pipeline.engines.hf.lora_weights",
            "pipeline.engines.hf.encoder",
            "pipeline.engines.hf.embedder",
            "pipeline.engines.hf.scorer",
        ),
    ),
    version=lambda: hardware.installed_version("transformers"),
    open=_open,
    devices=("gpu", "cpu"),
    features=FEATURES | {"guide", "adapters", "embeddings", "scores"},
    profiles=_profiles,
    missing=_missing,
    least_capability=(7, 0),
    settings=speculation,
    # On a GPU the next step is launched before the tokens of the last one are known.
    speculative={"cpu": ("prompt_lookup",)},
    memory=MemoryRule(cpu_overhead=0.7 * GIB),  # measured, resident
    package="transformers",
)
