"""How the server in a container is started: what its environment comes to."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.engines.description import FILE
from pipeline.engines.registry import ENGINES

MODEL = "/model"
PORT = 8000
DRAIN_SECONDS = 3  # until the balancer before the container has asked for its health again


@dataclass
class Launch:
    """What the variables come to.

    model, name: the folder that is served, and the name that clients call it by.
    runtime: of the profile. settings: section.key=value.
    engine: of the engine section, for an HF folder served as it is.
    arguments: engine.arguments, as vLLM names them.
    environment: of libraries. log_level: the least that is logged, as logging counts.
    """

    model: str | None = None
    name: str | None = None
    port: int = PORT
    runtime: str | None = None
    settings: list[str] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    log_level: int = logging.INFO

    def command(self) -> list[str]:
        """Arguments of `python -m pipeline.serving`.

        Raises:
            ConfigError: there is no model.
        """
        folder = Path(self.model or MODEL)
        if not is_built(folder) and not (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder} has no model: mount what stage=build made, or an HF folder "
                f"(docker run -v FOLDER:{MODEL}:ro …)"
            )
        engine = {} if is_built(folder) else {"name": self.runtime or "auto", **self.engine}
        if self.arguments:
            engine["arguments"] = self._arguments_of_the_runtime()
        return [
            f"--engine={folder}",
            f"--model={self.name or folder.name}",
            "serve.host=0.0.0.0",
            f"serve.port={self.port}",
            f"serve.drain_delay={DRAIN_SECONDS}",
            *(f"engine.{key}={json.dumps(value)}" for key, value in engine.items()),
            *self.settings,
        ]

    def _arguments_of_the_runtime(self) -> Mapping[str, Any]:
        translate = ENGINES[self.runtime].from_vllm_arguments if self.runtime else None
        return translate(self.arguments) if translate else self.arguments


def is_built(folder: Path) -> bool:
    """Whether stage=build made it, which says itself what runs it."""
    return (folder / FILE).is_file()
