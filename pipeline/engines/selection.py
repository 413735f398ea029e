"""Profiles: the ways in which a model could be served, which of them can run here, and the best.

A profile is a runtime, a precision and a number of GPUs, named as NVIDIA NIM names its own:
`<runtime>-<precision>-tp<GPUs>-pp1[-feat_lora]`. They are sorted in NIM's documented order; see
docs/engines.md. Imports none of the runtimes.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError, ResourceError
from pipeline.core.hardware import Machine
from pipeline.engines import compatibility as reasons
from pipeline.engines import memory
from pipeline.engines.memory import Decoder, Fit
from pipeline.engines.profile import CPU_PRECISIONS, LORA, Profile
from pipeline.engines.servable import Checkpoint
from pipeline.engines.trtllm import build as trtllm

GROUP_SIZES = (1, 2, 4, 8)


def find_profiles(
    model: Decoder,
    checkpoints: Sequence[Checkpoint],
    engine: EngineConfig,
    machine: Machine,
    *,
    lora_rank: int,
    measured: Mapping[str, float],
) -> list[Profile]:
    """Every profile of a model, best first, each with why it cannot run here or what it takes.

    Args:
        lora_rank: of the adapters that the profiles with LoRA make room for.
        measured: tokens a second by the names of profiles, on this machine.
    """
    found = []
    most = max(1, len(machine.gpus))
    groups = [n for n in GROUP_SIZES if n <= most and model.heads % n == 0]
    if "tensor_parallel_size" in engine.arguments:
        groups = [engine.arguments["tensor_parallel_size"]]
    for profile in _candidates(checkpoints, groups, machine, lora_rank):
        checkpoint = next(c for c in checkpoints if c.form == profile.form)
        judged = _judge(profile, checkpoint, model, engine, machine)
        found.append(replace(judged, tokens_per_second=measured.get(profile.name)))
    return sorted(found, key=lambda profile: profile.order)


def choose(profiles: Sequence[Profile], engine: EngineConfig) -> Profile:
    """The profile that is asked for by name, or else the first that can run here.

    Raises:
        ConfigError: there is none of that name. MissingRuntime: none can run here; or the one that
            was asked for cannot. ResourceError: for want of memory; says what would fit.
    """
    if engine.profile:
        if engine.profile.endswith(LORA) and not engine.lora_rank:
            raise ConfigError(
                f"engine.profile={engine.profile} needs engine.lora_rank=<of the adapters>, too"
            )
        named = [p for p in profiles if p.name == engine.profile]
        if not named:
            known = ", ".join(profile.name for profile in profiles)
            raise ConfigError(f"engine.profile={engine.profile} is none of this model: {known}")
        allowed = named
    else:
        lora = engine.lora_rank > 0
        allowed = [p for p in profiles if (p.lora_rank > 0) == lora]
        allowed = [p for p in allowed if engine.name in ("auto", p.runtime)]
        allowed = [p for p in allowed if not _other_precision(p, engine)]
    for profile in allowed:
        if profile.reason is None:
            return profile
    # The nearest to running: what lacks memory alone.
    refused = min(allowed, key=lambda p: not p.low_memory, default=None)
    if refused is None:
        raise ConfigError(
            f"engine={engine.name} has no profile for this model"
            + (" with LoRA adapters (engine.lora_rank)" if engine.lora_rank else "")
            + ": `python -m pipeline stage=profiles` shows those that there are"
        )
    raise refused.error(f"{refused.name} cannot run here: {refused.reason}")


def _other_precision(profile: Profile, engine: EngineConfig) -> bool:
    """engine.precision is of ONNX Runtime's engines; the others take the checkpoint's."""
    return profile.runtime == "onnxruntime" and engine.precision not in ("auto", profile.precision)


def explain(profiles: Sequence[Profile], chosen: Profile, engine: EngineConfig) -> list[str]:
    """Which profile was chosen and why, and why not those that come before it."""
    running = sum(profile.reason is None for profile in profiles)
    lines = [f"{running} of {len(profiles)} profiles can run here"]
    for profile in profiles:
        if profile == chosen:
            break
        asked = engine.name in ("auto", profile.runtime)
        if profile.reason and asked and (profile.lora_rank > 0) == (chosen.lora_rank > 0):
            lines.append(f"not {profile.name}: {profile.reason}")
    why = "the first of NVIDIA NIM's order that can run here"
    if engine.profile:
        why = "engine.profile names it"
    elif chosen.tokens_per_second:
        why = f"the fastest measured here, {chosen.tokens_per_second:,.0f} tokens/s"
    return [*lines, f"takes {chosen.name}: {why}"]


def _candidates(
    checkpoints: Sequence[Checkpoint], groups: Sequence[int], machine: Machine, lora_rank: int
) -> Iterator[Profile]:
    """What could be served at all, were every runtime and GPU here.

    groups: numbers of GPUs that a model may be spread over.
    """
    # Where TensorRT-LLM still builds engines they come first; a newer one loads HF folders alone.
    builds = trtllm.missing() is None or trtllm.llm_version() is None
    built = set()
    for checkpoint in sorted(checkpoints, key=lambda checkpoint: checkpoint.form != "qnemo"):
        form, precision = checkpoint.form, checkpoint.precision
        if form == "qnemo":
            profile = Profile("trtllm", precision, checkpoint.tensor_parallel or 1, 0, True, form)
            if builds or trtllm.not_loaded(precision):
                built.add(profile.name)
                yield profile
            continue
        for rank in (0, lora_rank) if lora_rank else (0,):
            if form in ("hf", "unified"):
                for tensor_parallel in groups:
                    for runtime in ("vllm", "trtllm"):
                        profile = Profile(runtime, precision, tensor_parallel, rank, True, form)
                        # TensorRT-LLM takes adapters on models that are not quantized.
                        takes = runtime == "vllm" or not rank or form == "hf"
                        if takes and profile.name not in built:
                            yield profile
            if form == "hf" or (form == "modelopt" and not rank):
                # In float32 alike on both: where PyTorch has a GPU it takes that.
                on_gpu = bool(machine.gpus) and reasons.torch_has_cuda()
                if on_gpu or precision != "fp32":
                    yield Profile("hf", precision, 1, rank, True, form)
                if not on_gpu:
                    yield Profile("hf", "fp32", 1, rank, False, form)
        if form == "hf":
            for rounded in CPU_PRECISIONS:
                yield Profile("onnxruntime", rounded, 1, 0, False, form)


def _judge(
    profile: Profile,
    checkpoint: Checkpoint,
    model: Decoder,
    engine: EngineConfig,
    machine: Machine,
) -> Profile:
    """A profile with what it takes, or why it cannot run here."""
    reason = reasons.lacks_gpu(profile, machine) if profile.gpu else None
    reason = reason or reasons.missing(profile)
    if reason is None and (reason := reasons.not_loaded(profile)):
        profile = replace(profile, error=ConfigError)
    footprint = partial(
        memory.footprint,
        model,
        profile.runtime,
        profile.precision,
        gpu=profile.gpu,
        cache_bytes=(1 if checkpoint.fp8_cache else 2) if profile.gpu else 4,
        tensor_parallel=profile.tensor_parallel,
        lora_rank=profile.lora_rank,
        stored=checkpoint.stored if profile.gpu else 0,  # on a CPU they become float32
    )
    if reason and not machine.gpus and profile.gpu:
        return replace(profile, reason=reason)
    capacity = float(memory.capacity(machine, gpus=profile.tensor_parallel * profile.gpu))
    if not capacity:  # the machine does not say: the runtime finds out
        return replace(profile, reason=reason)
    if profile.gpu:
        share = memory.GPU_SHARE[profile.runtime]
        capacity *= engine.arguments.get("gpu_memory_utilization", share)

    def fit(slots: int) -> Fit:
        takes = footprint(slots=slots)
        return memory.fit(model, profile.runtime, takes, capacity, slots, engine.max_seq_len)

    found = fit(engine.max_batch_size)
    if reason:
        return replace(profile, fit=found, reason=reason)
    if found.lacking:
        slots = range(1, engine.max_batch_size)
        most = bisect_left(slots, True, key=lambda count: fit(count).lacking > 0)
        lack = reasons.too_little(profile, found, engine, most)
        return replace(profile, fit=found, reason=lack, low_memory=True, error=ResourceError)
    return replace(profile, fit=found)
