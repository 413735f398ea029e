"""engine.json: what an engine is, what it was made for, and whether it can run here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError
from pipeline.core.hardware import inspect_machine

if TYPE_CHECKING:
    from pipeline.config.engine import EngineConfig
    from pipeline.engines.profile import Profile
    from pipeline.models.chat.renderer import Chat

FILE = "engine.json"


@dataclass(frozen=True)
class Description:
    """The content of engine.json.

    runtime, version: the library that runs it.
    hardware: what it is bound to, as the runtime's adapter names it.
    rendering: Chat.sha256 of the model that it was built from.
    settings: further arguments that the runtime's adapter left for itself.
    tensor_parallel: GPUs that share the model. lora_rank: of adapters that it has room for.
    memory_bytes: what it takes of each device, full; 0 if that is not known.
    """

    runtime: str
    version: str
    precision: str
    hardware: Mapping[str, str]
    rendering: str
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensor_parallel: int = 1
    lora_rank: int = 0
    memory_bytes: int = 0

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        (folder / FILE).write_text(text + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """The description of an engine's folder.

        Raises:
            ArtifactError: there is no engine.json, or it is not one.
        """
        try:
            return cls(**json.loads((folder / FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"{folder / FILE} cannot be read ({error}): {rebuild(folder)}"
            ) from error

    def require(self, folder: Path, version: str | None, hardware: Mapping[str, str]) -> None:
        """Refuse an engine that was made for another place.

        Args:
            version, hardware: of the runtime here; None if it is not installed.

        Raises:
            ArtifactError: the engine was built with another version of its runtime, or for other
                hardware.
        """
        if self.version != version:
            raise ArtifactError(
                f"{folder} was built with {self.runtime} {self.version}, and here is "
                f"{version or 'none'}: {rebuild(folder)}"
            )
        if dict(self.hardware) != dict(hardware):
            raise ArtifactError(
                f"{folder} was built for {_words(self.hardware)}, and this is {_words(hardware)}: "
                f"{rebuild(folder)}"
            )


def describe_profile(
    profile: "Profile",
    engine: "EngineConfig",
    chat: "Chat",
    version: str,
    hardware: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
) -> Description:
    """What is served by a profile, with the lengths that the configuration asks for."""
    return Description(
        runtime=profile.runtime,
        version=version,
        precision=profile.precision,
        hardware=hardware,
        rendering=chat.sha256,
        max_batch_size=engine.max_batch_size,
        max_input_len=engine.max_input_len,
        max_seq_len=engine.max_seq_len,
        settings=settings or {},
        tensor_parallel=profile.tensor_parallel,
        lora_rank=profile.lora_rank,
        memory_bytes=int(profile.fit.needed) if profile.fit else 0,
    )


def gpu_here() -> dict[str, str]:
    """What an engine for a GPU is bound to; empty without one."""
    gpus = inspect_machine().gpus
    return {"gpu": gpus[0].name, "compute_capability": gpus[0].compute_capability} if gpus else {}


def rebuild(folder: Path) -> str:
    """The command that makes an engine anew, though its settings are the same."""
    return f"`rm -r {folder} && python -m pipeline stage=build`"


def _words(hardware: Mapping[str, str]) -> str:
    return ", ".join(hardware[name] for name in sorted(hardware)) or "no known hardware"
