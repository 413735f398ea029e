"""The command that starts the server in a container."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.engines.description import FILE

MODEL = "/model"
PORT = 8000
DRAIN_SECONDS = 3  # longer than the interval of the load balancer's health checks

# vLLM's arguments as those of TensorRT-LLM.
_TRTLLM_ARGUMENTS: Mapping[str, Callable[[Any], tuple[str, Any]]] = {
    "gpu_memory_utilization": lambda share: (
        "kv_cache_config",
        {"free_gpu_memory_fraction": share},
    ),
    "enable_prefix_caching": lambda on: ("kv_cache_config", {"enable_block_reuse": on}),
    "enforce_eager": lambda on: ("cuda_graph_config", None if on else {}),
}


@dataclass
class Launch:
    """What the container's variables configure.

    Attributes:
        model: the folder to serve.
        name: the model's name in requests.
        runtime: the engine of the chosen profile.
        settings: overrides as section.key=value.
        engine: settings of the engine section, for an HF folder that is served directly.
        arguments: engine.arguments, by vLLM's names.
        environment: variables for libraries.
        log_level: the lowest level that is logged, as in `logging`.
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
            ConfigError: the folder has no model.
        """
        folder = Path(self.model or MODEL)
        if not is_built(folder) and not (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder} has no model: mount an engine of stage=build, or an HF folder "
                f"(docker run -v FOLDER:{MODEL}:ro …)"
            )
        engine = {} if is_built(folder) else {"name": self.runtime or "auto", **self.engine}
        if self.arguments:
            engine["arguments"] = self._runtime_arguments()
        return [
            f"--engine={folder}",
            f"--model={self.name or folder.name}",
            "serve.host=0.0.0.0",
            f"serve.port={self.port}",
            f"serve.drain_delay={DRAIN_SECONDS}",
            *(f"engine.{key}={json.dumps(value)}" for key, value in engine.items()),
            *self.settings,
        ]

    def _runtime_arguments(self) -> dict[str, Any]:
        if self.runtime != "trtllm":
            return self.arguments
        named: dict[str, Any] = {}
        for name, value in self.arguments.items():
            if name in _TRTLLM_ARGUMENTS:
                key, value = _TRTLLM_ARGUMENTS[name](value)
            else:
                key = name
            named[key] = {**named.get(key, {}), **value} if isinstance(value, dict) else value
        return named


def is_built(folder: Path) -> bool:
    """Whether the folder is an engine of stage=build, whose description says how to open it."""
    return (folder / FILE).is_file()
