"""Checkpoint → engine for this machine: TensorRT-LLM, vLLM, PyTorch or ONNX Runtime.

What is built is a profile (engines/selection.py): onnxruntime from the merged model, trtllm from
the qnemo checkpoint; vllm, hf and newer trtllm load HF folders as they are.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.config.engine import EngineConfig
from pipeline.config.schema import Config
from pipeline.core.artifact import MANIFEST, SCRATCH, Artifact, Outcome
from pipeline.core.console import get_console
from pipeline.core.errors import MissingRuntime, ProofFailed
from pipeline.core.hardware import inspect_machine
from pipeline.core.stage import Component, Stage
from pipeline.engines import registry as runtimes
from pipeline.engines.description import describe_profile, gpu_here
from pipeline.engines.memory import check_lengths, read_decoder
from pipeline.engines.profile import Profile
from pipeline.engines.selection import choose, explain, find_profiles
from pipeline.engines.servable import exported_checkpoints, hf_checkpoint
from pipeline.models.chat.renderer import FILES, Chat
from pipeline.models.files import clear

STAGE = Stage(
    version=1,
    libraries=("tokenizers", "jinja2", "numpy"),
    less_memory="lower engine.max_batch_size",
)


_HF = ("torch", "transformers", "nvidia-modelopt", "peft", "tokenizers")
ENGINES = {
    "onnxruntime": Component(
        name="engine/onnxruntime", version=1,
        libraries=("onnxruntime", "onnxruntime-genai", "onnx", "torch", "transformers", "peft"),
        modules=("pipeline.engines.onnxruntime.build", "pipeline.engines.onnxruntime.session"),
    ),
    "hf": Component(
        name="engine/hf", version=1, libraries=_HF,
        modules=("pipeline.engines.hf.session", "pipeline.engines.hf.lora",
                 "pipeline.engines.hf.embedder"),
    ),
    "trtllm": Component(
        name="engine/trtllm", version=1, libraries=("tensorrt_llm",),
        modules=("pipeline.engines.trtllm.build", "pipeline.engines.trtllm.engine"),
    ),
    "vllm": Component(
        name="engine/vllm", version=1, libraries=("vllm",),
        modules=("pipeline.engines.vllm.arguments", "pipeline.engines.vllm.engine"),
    ),
    "remote": Component(
        name="engine/remote", version=1, libraries=("httpx",),
        modules=("pipeline.engines.remote.description", "pipeline.engines.remote.engine",
                 "pipeline.engines.remote.requests"),
    ),
}  # fmt: skip


def components(config: Config) -> tuple[Component, ...]:
    """The engine that is built. `auto` may take any that is installed, so it depends on all."""
    name = config.engine.name
    if name == "auto":
        return tuple(component for key, component in ENGINES.items() if key != "remote")
    return (ENGINES[name],)


PROOF_TOKENS = 24
PROOF_QUESTIONS = (
    "Hello!",
    "How do I apply for a personal loan?",
    "My card was stolen, what should I do now?",
    "What does it cost to close my account?",
    "Can you tell me when the branch opens on Saturday?",
    "Thank you, that is all.",
)
# The least cosine of logits against PyTorch in float32, and the least agreement on the likeliest
# token, with which an engine counts as the same model.
LEAST = {"fp32": (0.9999, 0.99), "int8": (0.99, 0.9), "int4": (0.8, 0.4)}
# `auto` takes the smallest that agrees this well: what int8 saves is not worth a changed answer.
AUTO = (("int8", 0.99), ("fp32", 0.0))


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """See pipeline/stages/__init__.py.

    Raises:
        MissingRuntime: the runtime is not on this machine; says where it is and what to type.
        ResourceError: there is too little memory; says by how much and what would fit.
        ProofFailed: the engine does not answer as PyTorch does.
    """
    engine = config.engine
    merged = inputs["merge"].require("hf_checkpoint").path
    check_lengths(engine, read_decoder(merged).positions)
    exported = inputs["export"].require("exported").path
    clear(out)
    if engine.name == "remote":
        return _take_remote(engine, merged, out)
    profile = _choose(config, merged, exported)
    get_console().print(f"building [bold]{profile.name}[/]")
    if profile.runtime == "onnxruntime":
        return _build_onnxruntime(engine, profile, merged, out)
    if profile.form == "qnemo":
        return _build_trtllm(engine, profile, exported / "qnemo", out)
    return _take_checkpoint(
        engine, profile, merged if profile.form == "hf" else exported / "hf", out
    )


def _choose(config: Config, merged: Path, exported: Path) -> Profile:
    """The profile to build, said with why the better ones cannot run here."""
    from pipeline.engines.benchmark_history import measured_here
    from pipeline.engines.trtllm import build as trtllm
    from pipeline.engines.vllm import arguments as vllm

    engine, machine = config.engine, inspect_machine()
    model = read_decoder(merged)
    profiles = find_profiles(
        model,
        [hf_checkpoint(merged), *exported_checkpoints(exported)],
        engine,
        machine,
        lora_rank=engine.lora_rank,
        measured=measured_here(config.artifacts, model, machine),
    )
    try:
        chosen = choose(profiles, engine)
    except MissingRuntime as error:
        if engine.name == "trtllm":
            raise trtllm.refusal(str(error), exported / "qnemo", engine) from None
        lacks_vllm = engine.name == "vllm" and vllm.missing()
        raise vllm.refusal(str(error)) if lacks_vllm else error from None
    for line in explain(profiles, chosen, engine):
        get_console().print(f"engine={engine.name}: {line}", markup=False, soft_wrap=True)
    return chosen


def _build_onnxruntime(engine: EngineConfig, profile: Profile, model: Path, out: Path) -> Outcome:
    from pipeline.engines.onnxruntime import session as runtime

    free = engine.precision == "auto" and not engine.profile
    tries = AUTO if free and profile.precision == AUTO[0][0] else ((profile.precision, 0.0),)
    for precision, least_agreement in tries:
        chat, proof = _build_and_compare(engine, model, out, precision)
        if proof["token_agreement"] >= least_agreement:
            break
        get_console().print(
            f"engine.precision=auto: not {precision}: it agrees with PyTorch on "
            f"{proof['token_agreement']:.1%} of tokens, and {least_agreement:.0%} are wanted"
        )
    cosine, agreement = LEAST[precision]
    if proof["min_cosine"] < cosine or proof["token_agreement"] < agreement:
        raise ProofFailed(
            f"the {precision} engine of {model} differs from PyTorch: cosine of logits "
            f"{proof['min_cosine']:.5f} (at least {cosine}), same likeliest token in "
            f"{proof['token_agreement']:.1%} (at least {agreement:.0%}): build with "
            "engine.precision=fp32" + (", or report this model" if precision == "fp32" else "")
        )
    version, hardware = runtime.runtime_version(), runtime.hardware()
    described = describe_profile(profile, engine, chat, version, hardware)
    replace(described, precision=precision).write(out)
    metrics = {**proof, "engine_mib": _mib(out)}
    return Outcome(
        "engine", metrics, {"against": "PyTorch, float32", "precision": precision, **proof}
    )


def _build_and_compare(
    engine: EngineConfig, model: Path, out: Path, precision: str
) -> tuple[Chat, dict[str, float]]:
    """Write the engine into `out`, and measure it against PyTorch."""
    from pipeline.engines.onnxruntime import build as onnxruntime
    from pipeline.engines.onnxruntime.session import DecoderSession

    scratch = out / SCRATCH
    onnxruntime.build(model, out, precision, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    chat = _take_tokenizer(model, out)
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in PROOF_QUESTIONS]
    room = engine.max_seq_len - PROOF_TOKENS
    fitting = [prompt[-min(room, engine.max_input_len) :] for prompt in prompts]
    proof = onnxruntime.compare_with_torch(
        model,
        DecoderSession(out, slots=1, max_seq_len=engine.max_seq_len),
        fitting,
        new_tokens=PROOF_TOKENS,
        stop_ids=chat.stop_ids,
    )
    return chat, proof


def _build_trtllm(engine: EngineConfig, profile: Profile, checkpoint: Path, out: Path) -> Outcome:
    from pipeline.engines.trtllm import build as trtllm

    def show(line: str) -> None:
        get_console().print(line, markup=False)

    made = trtllm.build(checkpoint, out, engine, show)
    chat = _take_tokenizer(checkpoint, out)
    arguments = trtllm.llm_arguments(engine, profile.tensor_parallel, built=True)
    settings = {"backend": "tensorrt", "arguments": arguments, "built_with": made["command"]}
    version = made["version"]
    describe_profile(profile, engine, chat, version, gpu_here(), settings).write(out)
    return Outcome("engine", {"engine_mib": _mib(out)}, made)


def _take_checkpoint(
    engine: EngineConfig, profile: Profile, checkpoint: Path, out: Path
) -> Outcome:
    """An HF folder that its runtime loads as it is, with how it is to do that."""
    settings = runtimes.settings(profile, checkpoint, engine)
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST):
        target = out / file.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file, target)
    version, hardware = runtimes.here(profile.runtime)
    described = describe_profile(profile, engine, Chat.load(out), version or "", hardware, settings)
    described.write(out)
    return Outcome("engine", {"engine_mib": _mib(out)}, settings)


def _take_remote(engine: EngineConfig, model: Path, out: Path) -> Outcome:
    """The tokenizer and template that requests to another server are rendered with."""
    from pipeline.engines.remote import description as remote

    chat = _take_tokenizer(model, out)
    described = remote.describe(engine, chat)
    described.write(out)
    return Outcome("engine", {"engine_mib": _mib(out)}, dict(described.settings))


def _take_tokenizer(model: Path, out: Path) -> Chat:
    """Put the model's own tokenizer files there, in place of any that a builder wrote anew."""
    chat = Chat.load(model)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    chat.save(out)
    return chat


def _link_or_copy(file: Path, target: Path) -> None:
    """A second name for weights on the same disk, else a copy."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _mib(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
