"""Profiles: the ways in which a model could be served, which of them can run here, and the best.

A profile is an engine, a precision and a number of GPUs, named as NVIDIA NIM names its own:
`<engine>-<precision>-tp<GPUs>-pp1[-feat_lora]`. They are sorted in NIM's documented order; see
docs/engines.md. Imports none of the engines' libraries.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.config.engine import EngineConfig
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError, MissingRuntime, ResourceError
from pipeline.core.hardware import Machine
from pipeline.engines import compatibility as reasons
from pipeline.engines import memory
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.memory import Decoder, Fit
from pipeline.engines.profile import LORA, Profile
from pipeline.engines.record import EngineRecord, Site
from pipeline.engines.registry import AUTO, ENGINES, named

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
    """Every profile of a model, best first, each with why it cannot run here or what it needs.

    Args:
        lora_rank: of the adapters that profiles with LoRA leave memory for.
        measured: tokens a second on this machine, by the names of profiles.
    """
    found = []
    most = max(1, len(machine.gpus))
    groups = [n for n in GROUP_SIZES if n <= most and model.heads % n == 0]
    if "tensor_parallel_size" in engine.arguments:
        groups = [engine.arguments["tensor_parallel_size"]]
    site = Site(groups, bool(machine.gpus), (0, lora_rank) if lora_rank else (0,))
    for record in ENGINES.values():
        for profile in record.profiles(checkpoints, site):
            checkpoint = next(c for c in checkpoints if c.form == profile.form)
            judged = _judge(profile, checkpoint, model, engine, machine)
            found.append(replace(judged, tokens_per_second=measured.get(profile.name)))
    return sorted(found, key=_order)


def _order(profile: Profile) -> tuple[float, ...]:
    """Best first: GPU, measured (fastest first), engine, precision, most GPUs."""
    return (
        not profile.gpu,
        -(profile.tokens_per_second or 0),
        list(ENGINES).index(profile.runtime),
        profile.precision_place,
        -profile.tensor_parallel,
    )


def select_profile(
    profiles: Sequence[Profile], engine: EngineConfig, *, exported: Path | None = None
) -> Profile:
    """Choose a profile and print why; for a named engine, an error says how to install it.

    exported: what stage=export wrote, if anything, for the commands in messages.
    """
    try:
        chosen = choose(profiles, engine)
    except MissingRuntime as error:
        if record := named(engine.name):
            raise record.unavailable(str(error), engine, exported) from None
        raise
    for line in explain(profiles, chosen, engine):
        get_console().print(f"engine={engine.name}: {line}", markup=False, soft_wrap=True)
    return chosen


def check_choice(profiles: Sequence[Profile], engine: EngineConfig) -> None:
    """Refuse what `select_profile` would, but for too little memory.

    Raises:
        ConfigError: there is no such profile, or the engine does not take the model.
        MissingRuntime: no profile can run here.
    """
    try:
        choose(profiles, engine)
    except MissingRuntime as error:
        if record := named(engine.name):
            raise record.unavailable(str(error), engine, None) from None
        raise
    except ResourceError:
        return


def choose(profiles: Sequence[Profile], engine: EngineConfig) -> Profile:
    """The profile that engine.profile names, or else the first one that can run here.

    Raises:
        ConfigError: there is no profile of that name. MissingRuntime: no profile can run here, or
            the named one cannot. ResourceError: too little memory; says what would fit.
    """
    if engine.profile:
        if engine.profile.endswith(LORA) and not engine.lora_rank:
            raise ConfigError(
                f"engine.profile={engine.profile} also needs engine.lora_rank=<rank of adapters>"
            )
        allowed = [p for p in profiles if p.name == engine.profile]
        if any(not _speculates(p, engine) for p in allowed):
            raise _no_speculation(engine.profile, engine)
        if not allowed:
            known = ", ".join(profile.name for profile in profiles)
            raise ConfigError(
                f"engine.profile={engine.profile} does not exist for this model: choose from "
                f"{known}"
            )
    else:
        lora = engine.lora_rank > 0
        allowed = [p for p in profiles if (p.lora_rank > 0) == lora]
        allowed = [p for p in allowed if engine.name in (AUTO, p.runtime)]
        allowed = [p for p in allowed if not _other_precision(p, engine)]
        able = [p for p in allowed if _speculates(p, engine)]
        if allowed and not able:
            raise _no_speculation(f"engine={engine.name}", engine)
        allowed = able
    for profile in allowed:
        if profile.reason is None:
            _check_arguments(profile, engine)
            return profile
    # The one closest to running: only memory is missing.
    refused = min(allowed, key=lambda p: not p.low_memory, default=None)
    if refused is None:
        raise ConfigError(
            f"engine={engine.name} has no profile for this model"
            + (" with LoRA adapters (engine.lora_rank)" if engine.lora_rank else "")
            + ": `python -m pipeline stage=profiles` lists all profiles"
        )
    raise refused.error(f"{refused.name} cannot run here: {refused.reason}")


def _check_arguments(profile: Profile, engine: EngineConfig) -> None:
    """Refuse arguments that the engine of a profile does not take."""
    if engine.arguments and not ENGINES[profile.runtime].takes_arguments:
        raise ConfigError(
            f"engine.arguments has no effect: {profile.name}, which would be chosen, takes none: "
            "leave it out, or choose the engine that they are for with engine=…"
        )


def check_speculation(record: EngineRecord, engine: EngineConfig) -> None:
    """
    Raises:
        ConfigError: the engine takes the method of engine.speculative nowhere.
    """
    methods = {method for names in record.speculative.values() for method in names}
    if engine.speculative not in ("none", *methods):
        raise _no_speculation(f"engine={record.name}", engine)


def _speculates(profile: Profile, engine: EngineConfig) -> bool:
    """Whether a profile takes the method of engine.speculative."""
    methods = ENGINES[profile.runtime].speculative.get("gpu" if profile.gpu else "cpu", ())
    return engine.speculative in ("none", *methods)


def _no_speculation(chosen: str, engine: EngineConfig) -> ConfigError:
    able = [
        f"engine={record.name}" + ("" if device == "gpu" else " on a CPU")
        for record in ENGINES.values()
        for device, methods in record.speculative.items()
        if engine.speculative in methods
    ]
    return ConfigError(
        f"engine.speculative={engine.speculative} has no effect here: {chosen} does not take it; "
        f"{' or '.join(able)} does: choose one, or set engine.speculative=none"
    )


def _other_precision(profile: Profile, engine: EngineConfig) -> bool:
    """Whether another precision of the weights is asked for than the profile's."""
    return engine.precision not in (AUTO, profile.precision)


def explain(profiles: Sequence[Profile], chosen: Profile, engine: EngineConfig) -> list[str]:
    """Which profile was chosen and why, and why not the better ones."""
    running = sum(profile.reason is None for profile in profiles)
    lines = [f"{running} of {len(profiles)} profiles can run here"]
    for profile in profiles:
        if profile == chosen:
            break
        asked = engine.name in (AUTO, profile.runtime)
        if profile.reason and asked and (profile.lora_rank > 0) == (chosen.lora_rank > 0):
            lines.append(f"not {profile.name}: {profile.reason}")
    why = "the first in NVIDIA NIM's order that can run here"
    if engine.profile:
        why = "engine.profile names it"
    elif chosen.tokens_per_second:
        why = f"the fastest measured here, {chosen.tokens_per_second:,.0f} tokens/s"
    return [*lines, f"using {chosen.name}: {why}"]


def _judge(
    profile: Profile,
    checkpoint: Checkpoint,
    model: Decoder,
    engine: EngineConfig,
    machine: Machine,
) -> Profile:
    """A profile with what it needs, or why it cannot run here."""
    record = ENGINES[profile.runtime]
    reason = reasons.lacks_gpu(profile, machine) if profile.gpu else None
    reason = reason or record.missing(profile)
    not_served = model.refused.get(record.name) or record.not_served(model)
    if reason is None and (reason := not_served or record.not_loaded(profile)):
        profile = replace(profile, error=ConfigError)
    footprint = partial(
        memory.footprint,
        model,
        record.memory,
        profile.precision,
        gpu=profile.gpu,
        cache_bytes=(1 if checkpoint.fp8_cache else 2) if profile.gpu else 4,
        tensor_parallel=profile.tensor_parallel,
        lora_rank=profile.lora_rank,
        speculates=engine.speculative != "none" and _speculates(profile, engine),
        stored=checkpoint.stored if profile.gpu else 0,  # on a CPU they become float32
    )
    if reason and not machine.gpus and profile.gpu:
        return replace(profile, reason=reason)
    capacity = float(memory.capacity(machine, gpus=profile.tensor_parallel * profile.gpu))
    if not capacity:  # the machine does not report it: the runtime will find out
        return replace(profile, reason=reason)
    if profile.gpu:
        capacity *= engine.arguments.get("gpu_memory_utilization", record.memory.gpu_share)

    def fit(slots: int) -> Fit:
        takes = footprint(slots=slots)
        return memory.fit(model, record.memory, takes, capacity, slots, engine.max_seq_len)

    found = fit(engine.max_batch_size)
    if reason:
        return replace(profile, fit=found, reason=reason)
    if found.lacking:
        slots = range(1, engine.max_batch_size)
        most = bisect_left(slots, True, key=lambda count: fit(count).lacking > 0)
        lack = reasons.too_little(profile, found, engine, most)
        return replace(profile, fit=found, reason=lack, low_memory=True, error=ResourceError)
    return replace(profile, fit=found)
