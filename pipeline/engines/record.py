"""What the pipeline must know of an engine: one record an engine, in the table of registry.py.

A record is defined beside its engine, in engines/<name>/record.py, and imports none of its
libraries. To add an engine, write such a record, add it to the table, and give it a YAML file in
conf/engine/.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config.engine import EngineConfig
from pipeline.core import hardware
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.core.stage import Component
from pipeline.engines.base import Engine
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.description import Description, describe_profile
from pipeline.engines.memory import Decoder, MemoryRule
from pipeline.engines.profile import Profile

if TYPE_CHECKING:
    from pipeline.core.artifact import Outcome
    from pipeline.models.chat.renderer import Chat

Probes = Sequence[tuple[Sequence[int], Sequence[int]]]
# An engine on a GPU or on the processor.
Device = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Site:
    """What profiles are made for.

    groups: numbers of GPUs over which the model may be spread. gpus: whether there is a GPU.
    lora_ranks: of the adapters to leave room for, 0 (none) first.
    """

    groups: Sequence[int]
    gpus: bool
    lora_ranks: Sequence[int]


@dataclass(frozen=True)
class BuildJob:
    """What an engine is built from.

    record, profile: the engine, and the profile that was chosen.
    merged: the HF folder of stage=merge. exported: what stage=export wrote.
    probes: returns rows of the dataset's validation split, and the positions in each that predict
        tokens of answers, for the proof of an engine.
    """

    record: "EngineRecord"
    engine: EngineConfig
    profile: Profile
    merged: Path
    exported: Path
    probes: Callable[[], Probes]

    @property
    def checkpoint(self) -> Path:
        """The folder of the profile's form."""
        folders = {"hf": self.merged, "qnemo": self.exported / "qnemo"}
        return folders.get(self.profile.form, self.exported / "hf")

    def describe(
        self,
        chat: "Chat",
        settings: Mapping[str, Any] | None = None,
        *,
        version: str | None = None,
    ) -> Description:
        """The content of engine.json.

        version: of the runtime, where the builder says it; default: what is installed.
        """
        version = version or self.record.version() or ""
        return describe_profile(
            self.profile, self.engine, chat, version, self.record.hardware(), settings
        )


def take_checkpoint(job: BuildJob, out: Path) -> "Outcome":
    """Build an engine that loads an HF folder as it is: link the folder's files into `out`."""
    from pipeline.core.artifact import Outcome
    from pipeline.core.paths import MANIFEST
    from pipeline.models.chat.renderer import Chat

    checkpoint = job.checkpoint
    settings = job.record.settings(job.profile, checkpoint, job.engine)
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST):
        target = out / file.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file, target)
    job.describe(Chat.load(out), settings).write(out)
    return Outcome("engine", {"engine_mib": size_mib(out)}, settings)


def take_tokenizer(model: Path, out: Path) -> "Chat":
    """Write the model's own tokenizer files to `out`, in place of any that a builder made."""
    from pipeline.models.chat.renderer import FILES, Chat

    chat = Chat.load(model)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    chat.save(out)
    return chat


def size_mib(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20


def not_installed(package: str) -> str | None:
    """Why an engine cannot run without a package; None if the package is here."""
    return None if hardware.installed_version(package) else f"{package} is not installed"


def gpu_here() -> dict[str, str]:
    """What an engine for a GPU is bound to; empty without one."""
    gpus = hardware.inspect_machine().gpus
    return {"gpu": gpus[0].name, "compute_capability": gpus[0].compute_capability} if gpus else {}


def _link_or_copy(file: Path, target: Path) -> None:
    """A second name for weights on the same disk, else a copy."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _no_profiles(checkpoints: Sequence[Checkpoint], site: Site) -> Iterable[Profile]:
    return ()


def _no_reason(profile: Profile) -> str | None:
    return None


def _any_size(model: Decoder) -> str | None:
    return None


def _any_settings(engine: EngineConfig) -> None:
    """Every setting is taken."""


def speculation(profile: Profile, checkpoint: Path, engine: EngineConfig) -> dict[str, Any]:
    """The arguments of speculative decoding, for `settings` of our own engines; empty without."""
    if engine.speculative == "none":
        return {}
    return {"speculative": engine.speculative, "speculative_tokens": engine.speculative_tokens}


def _no_hardware() -> Mapping[str, str]:
    return {}


def _no_settings(profile: Profile, checkpoint: Path, engine: EngineConfig) -> dict[str, Any]:
    return {}


def _unavailable(reason: str, engine: EngineConfig, exported: Path | None) -> PipelineError:
    return MissingRuntime(reason)


@dataclass(frozen=True)
class EngineRecord:
    """An engine.

    Identity
        name: as in engine.name and in the names of profiles.
        component: version, libraries and modules, for fingerprints of stage=build.
        version: of the installed runtime; None without it. An engine opens only with the version
            that it was built with.
        hardware: what a built engine is bound to.

    What it can run
        devices: where it computes. Empty: on another machine.
        features: what it can do beyond sampling (engines/base.py), at most; the model and the
            settings decide which of them an opened engine has.
        profiles: the ways in which it could serve these checkpoints, on any machine. Their order
            does not matter: the table's order, then precision and GPUs decide.
        precisions: to which it rounds the weights itself, best first; engine.precision chooses.
            Empty: it keeps the checkpoint's.
        missing: why the runtime of a profile is not here, or None.
        not_loaded: why the runtime does not load the profile's format, or None.
        not_served: why it cannot serve a model of these sizes, or None.
        check_settings: refuse settings of engine.… that it does not take (ConfigError).
        least_capability: of a GPU (compute capability).
        spreads: a model can be spread over several GPUs.
        memory: how it uses a device's memory.

    Build and open
        build: write the engine into a folder. Default: link the checkpoint.
        settings: how the runtime is to load a checkpoint (Description.settings).
        open: load what was built, in this process. Arguments: folder, description, and how many
            requests may wait.
        own_process: the runtime has a process of its own already, or is on another machine, so
            that open() is called in the server's process.
        speculative: methods of engine.speculative, beside none, by where it computes.
        needs_build: it cannot serve an HF folder as it is.
        elsewhere: describes an engine whose weights are on another machine. Such an engine has no
            profiles, and `engine=auto` never chooses it.
        disk: bytes of a built engine. "linked": it shares the checkpoint's files. "packed": as
            much as the exported checkpoint. Or bytes a weight by engine.precision.

    For users
        package: distribution that `stage=doctor` lists.
        remedy: how to get what is missing.
        unavailable: the error when the engine was named and cannot run, from the reason, the
            settings, and the folder of stage=export if there is one.
        nim_name: NVIDIA NIM's name for it, where it differs.
        from_vllm_arguments: engine.arguments by this engine's names, from vLLM's. None: it takes
            none of them.
    """

    name: str
    component: Component
    version: Callable[[], str | None]
    open: Callable[[Path, Description, int], Engine]
    devices: tuple[Device, ...] = ()
    features: frozenset[str] = frozenset()
    hardware: Callable[[], Mapping[str, str]] = _no_hardware
    profiles: Callable[[Sequence[Checkpoint], Site], Iterable[Profile]] = _no_profiles
    precisions: tuple[str, ...] = ()
    missing: Callable[[Profile], str | None] = _no_reason
    not_loaded: Callable[[Profile], str | None] = _no_reason
    not_served: Callable[[Decoder], str | None] = _any_size
    check_settings: Callable[[EngineConfig], None] = _any_settings
    least_capability: tuple[int, int] = (0, 0)
    spreads: bool = False
    memory: MemoryRule = field(default_factory=MemoryRule)
    build: Callable[[BuildJob, Path], "Outcome"] = take_checkpoint
    settings: Callable[[Profile, Path, EngineConfig], dict[str, Any]] = _no_settings
    own_process: bool = False
    speculative: Mapping[Device, tuple[str, ...]] = field(default_factory=dict)
    needs_build: bool = False
    elsewhere: Callable[[EngineConfig, "Chat"], Description] | None = None
    disk: Literal["linked", "packed"] | Mapping[str, float] = "linked"
    package: str = ""
    remedy: str = "make setup"
    unavailable: Callable[[str, EngineConfig, Path | None], PipelineError] = _unavailable
    nim_name: str = ""
    from_vllm_arguments: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    @property
    def takes_arguments(self) -> bool:
        """Whether engine.arguments has an effect: a runtime's own, or where another server is."""
        return self.from_vllm_arguments is not None or self.elsewhere is not None
