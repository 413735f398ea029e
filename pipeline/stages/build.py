"""Build the engine for this machine: hf_checkpoint or exported checkpoint → engine.

onnxruntime takes the merged model, trtllm the qnemo checkpoint, vllm the unified HF checkpoint.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifact import SCRATCH, Artifact, Outcome
from pipeline.chat import FILES, Chat
from pipeline.checkpoints import clear
from pipeline.config import Config, EngineConfig
from pipeline.console import get_console
from pipeline.errors import ConfigError, ProofFailed
from pipeline.serving.description import Description, gpu_here

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
        ProofFailed: the engine does not answer as PyTorch does.
    """
    engine = config.engine
    merged = inputs["merge"].require("hf_checkpoint").path
    _check_lengths(engine, merged)
    exported = inputs["export"].require("exported").path
    name = engine.name if engine.name != "auto" else _choose(exported / "hf")
    clear(out)
    if name == "trtllm":
        return _build_trtllm(engine, exported / "qnemo", out)
    if name == "vllm":
        return _build_vllm(engine, exported, out)
    return _build_onnxruntime(engine, merged, out)


def _check_lengths(engine: EngineConfig, model: Path) -> None:
    if engine.max_input_len >= engine.max_seq_len:
        raise ConfigError(
            f"engine.max_input_len={engine.max_input_len} leaves no room for an answer in "
            f"engine.max_seq_len={engine.max_seq_len}: raise the latter"
        )
    positions = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    if engine.max_seq_len > positions:
        raise ConfigError(
            f"engine.max_seq_len={engine.max_seq_len} is over the {positions} positions of the "
            f"model: set it to {positions} at most"
        )


def _choose(checkpoint: Path) -> str:
    """The fastest runtime that can run here, said with why the others cannot."""
    from pipeline.adapters import trtllm, vllm

    console, has_gpu = get_console(), bool(gpu_here())
    reasons = {"trtllm": trtllm.missing(), "vllm": vllm.missing() or vllm.unloadable(checkpoint)}
    for name, reason in reasons.items():
        reason = reason if has_gpu else "this machine has no NVIDIA GPU"
        if reason is None:
            console.print(f"engine=auto takes [bold]{name}[/]: it is installed, with a GPU")
            return name
        console.print(f"engine=auto: not {name}: {reason}")
    console.print("engine=auto takes [bold]onnxruntime[/]: it runs on any processor")
    return "onnxruntime"


def _build_onnxruntime(engine: EngineConfig, model: Path, out: Path) -> Outcome:
    from pipeline.adapters import onnxruntime_session as runtime

    tries = AUTO if engine.precision == "auto" else ((engine.precision, 0.0),)
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
    _description(engine, "onnxruntime", version, hardware, precision, chat).write(out)
    metrics = {**proof, "engine_mib": _mib(out)}
    return Outcome(
        "engine", metrics, {"against": "PyTorch, float32", "precision": precision, **proof}
    )


def _build_and_compare(
    engine: EngineConfig, model: Path, out: Path, precision: str
) -> tuple[Chat, dict[str, float]]:
    """Write the engine into `out`, and measure it against PyTorch."""
    from pipeline.adapters import onnxruntime
    from pipeline.adapters.onnxruntime_session import DecoderSession

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


def _build_trtllm(engine: EngineConfig, checkpoint: Path, out: Path) -> Outcome:
    from pipeline.adapters import trtllm

    def show(line: str) -> None:
        get_console().print(line, markup=False)

    made = trtllm.build(checkpoint, out, engine, show)
    chat = _take_tokenizer(checkpoint, out)
    settings = {
        "serve_with": f"trtllm-serve {{folder}}/{trtllm.ENGINES} --backend tensorrt "
        "--tokenizer {folder}",
        "built_with": made["command"],
    }
    version, precision = made["version"], made["precision"]
    _description(engine, "trtllm", version, gpu_here(), precision, chat, settings).write(out)
    return Outcome("engine", {"engine_mib": _mib(out)}, made)


def _build_vllm(engine: EngineConfig, exported: Path, out: Path) -> Outcome:
    from pipeline.adapters import vllm

    checkpoint = exported / "hf"
    mapping = json.loads((exported / "qnemo" / "config.json").read_text())["mapping"]
    profile = vllm.profile(checkpoint, engine, mapping["tp_size"])
    if reason := vllm.missing():
        raise vllm.refusal(reason)
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        target = out / file.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file, target)
    settings = {"serve_with": vllm.serve_command("{folder}", profile), "arguments": profile}
    version, precision = vllm.version() or "", vllm.quantization_of(checkpoint)[0] or "none"
    chat = Chat.load(out)
    _description(engine, "vllm", version, gpu_here(), precision, chat, settings).write(out)
    return Outcome("engine", {"engine_mib": _mib(out)}, {"arguments": profile})


def _take_tokenizer(model: Path, out: Path) -> Chat:
    """Put the model's own tokenizer files there, in place of any that a builder wrote anew."""
    chat = Chat.load(model)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    chat.save(out)
    return chat


def _description(
    engine: EngineConfig,
    runtime: str,
    version: str,
    hardware: Mapping[str, str],
    precision: str,
    chat: Chat,
    settings: Mapping[str, Any] | None = None,
) -> Description:
    return Description(
        runtime=runtime,
        version=version,
        precision=precision,
        hardware=hardware,
        rendering=chat.sha256,
        max_batch_size=engine.max_batch_size,
        max_input_len=engine.max_input_len,
        max_seq_len=engine.max_seq_len,
        settings=settings or {},
    )


def _link_or_copy(file: Path, target: Path) -> None:
    """A second name for weights on the same disk, else a copy."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _mib(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
