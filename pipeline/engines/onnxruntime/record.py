"""What the pipeline must know of ONNX Runtime as an engine (engines/record.py)."""

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    speculation,
    take_tokenizer,
)

if TYPE_CHECKING:
    from pipeline.core.artifact import Outcome
    from pipeline.models.chat.renderer import Chat


@dataclass(frozen=True)
class Bound:
    """What an engine must reach to count as the same model as PyTorch's (models/divergence.py).

    loss: the share of the model's information that it may lose. agreement: of the likeliest tokens,
    weighted with how much the model prefers them, at least.
    """

    loss: float
    agreement: float


# Measured on the bundled model and nine random ones, of which Mistral's compute what Llama's do
# (bench/results/proof_bounds.json): float32 sums in another order lose at most 2e-11, and the
# smallest damage loses 0.005. The graph is proven in float32, whatever it is then rounded to, so
# the others only bound what rounding costs: at most 0.003 in int8, and 0.25 in int4, where a random
# model keeps as few as 59 % of its likeliest tokens. What that costs in right answers is for
# stage=benchmark and its gate to say.
BOUNDS = {"fp32": Bound(1e-6, 0.9999), "int8": Bound(0.02, 0.97), "int4": Bound(0.6, 0.4)}
# Token by token with the cache, an engine computes what it computes at once, but for the order of
# its sums and how it rounds activations.
MOST_CACHE_LOSS = {"fp32": 1e-6, "int8": 1e-3, "int4": 1e-3}
# `auto` uses int8 only if so many answers stay the same, token for token: what int8 saves is not
# worth a changed answer.
SAME_ANSWERS = 0.99


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
        ProofFailed: the engine does not predict what PyTorch predicts.
    """
    from pipeline.core.artifact import Outcome

    engine, profile = job.engine, job.profile
    free = engine.precision == "auto" and not engine.profile and profile.precision == "int8"
    precision = profile.precision
    chat, proof = build_and_compare(job, out, precision)
    if free and (proof["same_answers"] < SAME_ANSWERS or refusal(precision, proof)):
        get_console().print(
            f"engine.precision=auto: {precision} is not used: it leaves "
            f"{proof['same_answers']:.1%} of the validation answers as they are, and "
            f"{SAME_ANSWERS:.0%} are required"
        )
        precision = "fp32"
        chat, proof = build_and_compare(job, out, precision)
    accepted = {}
    if wrong := refusal(precision, proof):
        if engine.overrule is None:
            raise ProofFailed(
                f"the {precision} engine of {job.checkpoint} {wrong}: clients would get answers "
                "of another model than the one that was evaluated. Build with "
                "engine.precision=fp32, "
                + ("report this model, " if precision == "fp32" else "")
                + "or accept it on the record with engine.overrule=REASON"
            )
        accepted = {"overruled": {"reason": engine.overrule, "refusal": wrong}}
    settings = job.record.settings(profile, job.checkpoint, engine)
    replace(job.describe(chat, settings), precision=precision).write(out)
    metrics = {**proof, "engine_mib": size_mib(out)}
    return Outcome(
        "engine",
        metrics,
        {"against": "PyTorch, float32", "precision": precision, **proof, **accepted},
    )


def refusal(precision: str, proof: Mapping[str, float]) -> str | None:
    """Why an engine does not count as the same model, in words; None if it does."""
    bound, exact = BOUNDS[precision], BOUNDS["fp32"]
    if not proof["exact_loss"] <= exact.loss:
        return (
            f"is not made of the same model: in float32 it loses {proof['exact_loss']:.2g} of "
            f"what PyTorch's predictions say ({exact.loss:g} is allowed)"
        )
    if not (proof["loss"] <= bound.loss and proof["agreement"] >= bound.agreement):
        return (
            f"loses {proof['loss']:.2g} of what PyTorch's predictions say ({bound.loss:g} is "
            f"allowed), with {proof['agreement']:.1%} of its likeliest tokens (at least "
            f"{bound.agreement:.0%})"
        )
    if not proof["cache_loss"] <= MOST_CACHE_LOSS[precision]:
        return (
            f"predicts otherwise token by token than at once: it loses {proof['cache_loss']:.2g} "
            f"({MOST_CACHE_LOSS[precision]:g} is allowed)"
        )
    return None


def build_and_compare(job: BuildJob, out: Path, precision: str) -> tuple["Chat", dict[str, float]]:
    """Write the engine into `out`, and compare it with PyTorch: the graph in float32, and, as
    `exact_loss`, what it loses before it is rounded."""
    import torch

    from pipeline.core.artifact import SCRATCH
    from pipeline.engines.onnxruntime import build as onnxruntime
    from pipeline.engines.onnxruntime.session import DecoderSession
    from pipeline.models import hf_model

    model, length, probes = job.checkpoint, job.engine.max_seq_len, job.probes()
    scratch = out / SCRATCH
    exact = onnxruntime.build(model, out, precision, scratch)
    torch_model = hf_model.load_model(model, dtype="float32")
    reference = torch.cat([hf_model.logits(torch_model, ids)[at] for ids, at in probes])
    del torch_model
    proof = onnxruntime.compare_with_torch(
        reference, DecoderSession(exact, slots=1, max_seq_len=length), probes
    )
    proof["exact_loss"] = proof["loss"]
    if exact != out:
        proof |= onnxruntime.compare_with_torch(
            reference, DecoderSession(out, slots=1, max_seq_len=length), probes
        )
    shutil.rmtree(scratch, ignore_errors=True)
    return take_tokenizer(model, out), proof


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
        speculative_tokens=description.settings.get("speculative_tokens", 0),
    )


ONNXRUNTIME = EngineRecord(
    name="onnxruntime",
    component=Component(
        name="engine/onnxruntime",
        version=2,
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
    settings=speculation,
    speculative={"cpu": ("prompt_lookup",)},
    needs_build=True,
    # auto may keep float32.
    disk={"auto": 4.0, "fp32": 4.0, "int8": 1.5, "int4": 1.2},
    package="onnxruntime-genai",
)
