"""The ways in which the model can be served on this machine, as NVIDIA NIM lists them.

Not part of the graph: it reads the merged model and the export, or plans what they will be, and
writes nothing. `engine=auto` chooses from the same list.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.console import output_console
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.hardware import Machine, inspect_machine
from pipeline.engines.checkpoint import (
    Checkpoint,
    exported_checkpoints,
    hf_checkpoint,
    planned_checkpoints,
)
from pipeline.engines.memory import gib, read_decoder
from pipeline.engines.profile import Profile
from pipeline.engines.selection import choose, explain, find_profiles
from pipeline.models.architecture import read_shape


def run(config: Config) -> None:
    """Print the profiles to standard output, as config.profiles.format says.

    Raises:
        DataError: the model's folder does not give its sizes.
    """
    from pipeline.engines.benchmark_history import measured_here

    machine = inspect_machine()
    folder = config.artifacts / "merge"
    if not (folder / "config.json").is_file():
        folder = config.model.path
    model = read_decoder(folder)
    profiles = find_profiles(
        model,
        [hf_checkpoint(folder), *_exported(config, folder)],
        config.engine,
        machine,
        lora_rank=config.engine.lora_rank or config.finetune.adapter.rank,
        measured=measured_here(config.artifacts, model, machine),
    )
    try:
        chosen = choose(profiles, config.engine)
        why = explain(profiles, chosen, config.engine)
    except PipelineError as error:
        chosen, why = None, [str(error)]
    if config.profiles.format == "json":
        print(json.dumps(_as_json(folder, profiles, chosen, why), indent=1))
    else:
        _show(config, folder, machine, profiles, why)


def _exported(config: Config, model: Path) -> list[Checkpoint]:
    """What stage=export wrote, or would write of a model."""
    made = config.artifacts / "export"
    if any((made / form / "config.json").is_file() for form in ("qnemo", "hf")):
        return exported_checkpoints(made)
    try:
        no_qnemo = read_shape(model).no_qnemo
    except DataError:  # not a model of the chain; engines may serve it all the same
        no_qnemo = None
    return planned_checkpoints(
        config.quantize.format,
        config.quantize.kv_cache,
        config.export.tensor_parallel,
        config.model.dtype,
        no_qnemo,
    )


def _groups(profiles: Sequence[Profile]) -> dict[str, list[Profile]]:
    """The groups of NIM's list-model-profiles."""
    runs = [profile for profile in profiles if profile.reason is None]
    low = [profile for profile in profiles if profile.low_memory]
    return {
        "Compatible with system and runnable": [p for p in runs if not p.lora_rank],
        "With LoRA support": [p for p in runs if p.lora_rank],
        "Compatible with system but with too little memory": low,
        "Incompatible with system": [p for p in profiles if p.reason and not p.low_memory],
    }


def _show(
    config: Config, folder: Path, machine: Machine, profiles: Sequence[Profile], why: Sequence[str]
) -> None:
    from rich.markup import escape

    console, engine = output_console(), config.engine
    gpus = ", ".join(f"{gpu.name} ({gib(gpu.memory_bytes)})" for gpu in machine.gpus)
    console.print(f"[bold]Model[/] {escape(str(folder))}", soft_wrap=True)
    console.print(
        f"[bold]System[/] {gpus or 'no NVIDIA GPU'}; {machine.cores:g} cores, "
        f"{gib(machine.memory_bytes)}; {engine.max_batch_size} sequences of {engine.max_seq_len} "
        "tokens at a time\n"
    )
    for title, members in _groups(profiles).items():
        console.print(f"[bold]{title}[/]" + ("" if members else ": none"))
        for profile in members:
            console.print(f"  {profile.name:<36} {escape(_line(profile))}", soft_wrap=True)
    console.print()
    for line in dict.fromkeys([why[0], why[-1]]):
        console.print(f"engine={engine.name}: {escape(line)}", soft_wrap=True)


def _line(profile: Profile) -> str:
    if profile.reason or profile.fit is None:
        return profile.reason or ""
    fit = profile.fit
    text = f"{gib(fit.needed)} of {gib(fit.capacity)}, up to {fit.longest} tokens, {fit.most}"
    text += " sequences of full length"
    if profile.tokens_per_second:
        text += f"; measured {profile.tokens_per_second:,.0f} tokens/s"
    return text


def _as_json(
    folder: Path, profiles: Sequence[Profile], chosen: Profile | None, why: Sequence[str]
) -> dict[str, Any]:
    def entry(profile: Profile) -> dict[str, Any]:
        fit = profile.fit
        return {
            "name": profile.name,
            "runtime": profile.runtime,
            "precision": profile.precision,
            "tensor_parallel": profile.tensor_parallel,
            "lora_rank": profile.lora_rank,
            "device": "gpu" if profile.gpu else "cpu",
            "reason": profile.reason,
            "needed_bytes": fit and int(fit.needed),
            "capacity_bytes": fit and int(fit.capacity),
            "longest_sequence": fit and fit.longest,
            "sequences_of_full_length": fit and fit.most,
            "measured_tokens_per_second": profile.tokens_per_second,
        }

    keys = ("runnable", "lora", "low_memory", "incompatible")
    groups = zip(keys, _groups(profiles).values(), strict=True)
    return {
        "model": str(folder),
        **{key: [entry(profile) for profile in members] for key, members in groups},
        "chosen": chosen and chosen.name,
        "why": list(why),
    }
