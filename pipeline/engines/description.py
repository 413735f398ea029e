"""engine.json: what an engine is, what it was built for, and whether it can run here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError

if TYPE_CHECKING:
    from pipeline.config.engine import EngineConfig
    from pipeline.engines.profile import Profile
    from pipeline.models.chat.renderer import Chat

FILE = "engine.json"


@dataclass(frozen=True)
class Description:
    """The content of engine.json.

    runtime, version: the engine's name in the table of engines, and the version of its library.
    hardware: what it is bound to (EngineRecord.hardware).
    rendering: Chat.sha256 of the model that it was built from.
    settings: further arguments for opening it (EngineRecord.settings).
    tensor_parallel: GPUs that share the model. lora_rank: largest rank of LoRA adapters.
    memory_bytes: what it needs on each device at full load; 0 if that is not known.
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
            ArtifactError: there is no engine.json, or it cannot be read.
        """
        try:
            return cls(**json.loads((folder / FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"{folder / FILE} cannot be read ({error}): {rebuild(folder)}"
            ) from error

    def require(
        self,
        what: Path | str,
        version: str | None,
        hardware: Mapping[str, str],
        instead: str | None = None,
    ) -> None:
        """Refuse an engine that was built for another machine.

        Args:
            what: the engine's folder, or its name in a message.
            version, hardware: of the runtime here; None if it is not installed.
            instead: what to do; None: build the folder's engine again.

        Raises:
            ArtifactError: the engine was built with another version of its runtime, or for other
                hardware.
        """
        instead = instead or rebuild(Path(what))
        if self.version != version:
            raise ArtifactError(
                f"{what} was built with {self.runtime} {self.version}, and this machine has "
                f"{version or 'none'}: {instead}"
            )
        if dict(self.hardware) != dict(hardware):
            raise ArtifactError(
                f"{what} was built for {_words(self.hardware)}, and this machine has "
                f"{_words(hardware)}: {instead}"
            )


def describe_profile(
    profile: "Profile",
    engine: "EngineConfig",
    chat: "Chat",
    version: str,
    hardware: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
) -> Description:
    """The description of a profile, with the lengths from the configuration."""
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


def rebuild(folder: Path) -> str:
    """The command that builds an engine again with the same settings."""
    return f"`rm -r {folder} && python -m pipeline stage=build`"


def _words(hardware: Mapping[str, str]) -> str:
    return ", ".join(hardware[name] for name in sorted(hardware)) or "no known hardware"
