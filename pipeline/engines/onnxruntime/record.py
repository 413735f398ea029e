"""What the pipeline must know of ONNX Runtime as an engine (engines/record.py)."""

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import hardware
from pipeline.core.console import get_console
from pipeline.core.errors import ProofFailed
from pipeline.core.hardware import GIB
from pipeline.core.stage import Component
from pipeline.engines.base import Engine
from pipeline.engines.batching.model_runner import FEATURES
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.description import Description
from pipeline.engines.memory import Decoder, MemoryRule
from pipeline.engines.profile import CPU_PRECISIONS, Profile
from pipeline.engines.record import (
    BuildJob,
    EngineRecord,
    Site,
    not_installed,
    size_mib,
    take_tokenizer,
)

if TYPE_CHECKING:
    from pipeline.core.artifact import Outcome
    from pipeline.models.chat.renderer import Chat

PROOF_TOKENS = 24
PROOF_QUESTIONS = (
    "Hello!",
    "How do I apply for a personal loan?",
    "My card was stolen, what should I do now?",
    "What does it cost to close my account?",
    "Can you tell me when the branch opens on Saturday?",
    "Thank you, that is all.",
)
# What an engine must reach to count as the same model: the cosine of its logits with those of
# PyTorch in float32, and the share of positions with the same most likely token.
LEAST = {"fp32": (0.9999, 0.99), "int8": (0.99, 0.9), "int4": (0.8, 0.4)}
# `auto` uses int8 only if it agrees this well: what int8 saves is not worth a changed answer.
AUTO = (("int8", 0.99), ("fp32", 0.0))


def _profiles(checkpoints: Sequence[Checkpoint], site: Site) -> Iterator[Profile]:
    for checkpoint in checkpoints:
        if checkpoint.form == "hf":
            for precision in CPU_PRECISIONS:
                yield Profile("onnxruntime", precision, 1, 0, False, "hf")


HEAD_MULTIPLE = 16  # of its attention operator with rotary positions (GroupQueryAttention)


def _not_served(model: Decoder) -> str | None:
    if model.head_dim % HEAD_MULTIPLE == 0:
        return None
    return (
        f"ONNX Runtime takes heads whose size is a multiple of {HEAD_MULTIPLE}, and this model's "
        f"have {model.head_dim}: choose engine=hf"
    )


def hardware_here() -> Mapping[str, str]:
    """What an engine is bound to: the processor's architecture."""
    return {"device": "cpu", "architecture": platform.machine()}


def _build(job: BuildJob, out: Path) -> "Outcome":
    """Build with ONNX Runtime GenAI's builder, and compare with PyTorch.

    Raises:
        ProofFailed: the engine does not answer as PyTorch does.
    """
    from pipeline.core.artifact import Outcome

    engine, profile, model = job.engine, job.profile, job.checkpoint
    free = engine.precision == "auto" and not engine.profile
    tries = AUTO if free and profile.precision == AUTO[0][0] else ((profile.precision, 0.0),)
    for precision, least_agreement in tries:
        chat, proof = build_and_compare(job, out, precision)
        if proof["token_agreement"] >= least_agreement:
            break
        get_console().print(
            f"engine.precision=auto: {precision} is not used: it agrees with PyTorch on "
            f"{proof['token_agreement']:.1%} of tokens, and {least_agreement:.0%} are required"
        )
    cosine, agreement = LEAST[precision]
    if proof["min_cosine"] < cosine or proof["token_agreement"] < agreement:
        raise ProofFailed(
            f"the {precision} engine of {model} differs from PyTorch: cosine of logits "
            f"{proof['min_cosine']:.5f} (at least {cosine}), same most likely token at "
            f"{proof['token_agreement']:.1%} of positions (at least {agreement:.0%}): build with "
            "engine.precision=fp32" + (", or report this model" if precision == "fp32" else "")
        )
    replace(job.describe(chat), precision=precision).write(out)
    metrics = {**proof, "engine_mib": size_mib(out)}
    return Outcome(
        "engine", metrics, {"against": "PyTorch, float32", "precision": precision, **proof}
    )


def build_and_compare(job: BuildJob, out: Path, precision: str) -> tuple["Chat", dict[str, float]]:
    """Write the engine into `out`, and compare it with PyTorch."""
    from pipeline.core.artifact import SCRATCH
    from pipeline.engines.onnxruntime import build as onnxruntime
    from pipeline.engines.onnxruntime.session import DecoderSession

    engine, model = job.engine, job.checkpoint
    scratch = out / SCRATCH
    onnxruntime.build(model, out, precision, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    chat = take_tokenizer(model, out)
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in PROOF_QUESTIONS]
    length = min(engine.max_seq_len - PROOF_TOKENS, engine.max_input_len)
    proof = onnxruntime.compare_with_torch(
        model,
        DecoderSession(out, slots=1, max_seq_len=engine.max_seq_len),
        [prompt[-length:] for prompt in prompts],
        new_tokens=PROOF_TOKENS,
        stop_ids=chat.stop_ids,
    )
    return chat, proof


def _open(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.batching.guided_decoding import Guides
    from pipeline.engines.batching.scheduler import BatchingEngine
    from pipeline.engines.onnxruntime.session import DecoderSession
    from pipeline.models.chat.renderer import Chat

    threads = max(1, int(hardware.inspect_machine().cores))
    slots, length = description.max_batch_size, description.max_seq_len
    return BatchingEngine(
        DecoderSession(folder, slots, length, threads=threads),
        max_input_len=description.max_input_len,
        max_queue=max_queue,
        guides=Guides(Chat.load(folder)),
    )


ONNXRUNTIME = EngineRecord(
    name="onnxruntime",
    component=Component(
        name="engine/onnxruntime",
        version=1,
        libraries=("onnxruntime", "onnxruntime-genai", "onnx", "torch", "transformers", "peft"),
        modules=(
            "pipeline.engines.onnxruntime.record",
            "pipeline.engines.onnxruntime.build",
            "pipeline.engines.onnxruntime.session",
        ),
    ),
    version=lambda: hardware.installed_version("onnxruntime"),
    open=_open,
    devices=("cpu",),
    features=FEATURES | {"guide"},
    hardware=hardware_here,
    profiles=_profiles,
    precisions=CPU_PRECISIONS,
    missing=lambda profile: not_installed("onnxruntime-genai"),
    not_served=_not_served,
    memory=MemoryRule(cpu_overhead=0.2 * GIB),  # measured, resident
    build=_build,
    needs_build=True,
    # auto may keep float32.
    disk={"auto": 4.0, "fp32": 4.0, "int8": 1.5, "int4": 1.2},
    package="onnxruntime-genai",
)
