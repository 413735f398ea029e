"""What engine.arguments says of engine=triton."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError

# A backend of Triton, and the engines that may stand behind it.
BACKENDS: Mapping[str, tuple[str, ...]] = {
    "python": ("auto", "onnxruntime", "hf", "vllm", "trtllm"),
    "tensorrtllm": ("trtllm",),
    "vllm": ("vllm",),
    "onnxruntime": ("onnxruntime",),
}
NAME = re.compile(r"[A-Za-z0-9][\w.\-]*")
# Models of a repository, by their part: what follows the model's name.
TOKENS, STREAM, PRE, POST = "_tokens", "_stream", "_preprocessing", "_postprocessing"
PARTS = {
    "text": "",
    "tokens": TOKENS,
    "stream": STREAM,
    "preprocessing": PRE,
    "postprocessing": POST,
}
# Options of tritonserver that the engine sets itself.
OWN_OPTIONS = (
    "model-repository model-store backend-directory http-port grpc-port metrics-port http-address "
    "grpc-address metrics-address exit-timeout-secs"
).split()


@dataclass(frozen=True)
class Settings:
    """backend: Triton's. engine: of this pipeline, behind it. model: its name in Triton.

    arguments: of that engine, as engine.arguments has them without Triton.
    config: fields of config.pbtxt, by the part of the repository that gets them (PARTS).
    server: options of tritonserver. mount: where a container has the repository.
    """

    backend: str
    engine: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    server: Sequence[str] = ()
    mount: str = "/models"


def read(engine: EngineConfig) -> Settings:
    """
    Raises:
        ConfigError: a key is unknown, or a value wrong; names it and what is allowed.
    """
    given = dict(engine.arguments)
    backend = given.pop("backend", "python")
    if backend not in BACKENDS:
        raise ConfigError(f"engine.arguments.backend={backend}: choose from {', '.join(BACKENDS)}")
    inner = given.pop("engine", BACKENDS[backend][0])
    if inner not in BACKENDS[backend]:
        raise ConfigError(
            f"engine.arguments.engine={inner}: behind Triton's backend {backend} stands "
            f"{' or '.join(BACKENDS[backend])}"
        )
    model = str(given.pop("model", "") or "")
    if not NAME.fullmatch(model):
        raise ConfigError(
            f"engine.arguments.model={model}: Triton takes letters, digits, dots, dashes and "
            "underscores, as its folder has this name"
        )
    found = Settings(
        backend,
        inner,
        model,
        _mapping("arguments", given.pop("arguments", {})),
        {
            part: _mapping(f"config.{part}", fields)
            for part, fields in _mapping("config", given.pop("config", {})).items()
        },
        _options(given.pop("server", ())),
        str(given.pop("mount", "/models")).rstrip("/"),
    )
    if given:
        raise ConfigError(
            f"engine=triton does not know engine.arguments.{next(iter(given))}: it takes backend, "
            "engine, model, arguments, config, server and mount"
        )
    if unknown := found.config.keys() - PARTS:
        raise ConfigError(
            f"engine.arguments.config.{min(unknown)}: choose the model from {', '.join(PARTS)}"
        )
    if not found.mount.startswith("/"):
        raise ConfigError(
            f"engine.arguments.mount={found.mount}: give an absolute path in the container"
        )
    return found


def hosted(engine: EngineConfig) -> EngineConfig:
    """The settings of the engine that stands behind Triton.

    Raises:
        ConfigError: see read.
    """
    found = read(engine)
    return engine.model_copy(update={"name": found.engine, "arguments": dict(found.arguments)})


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"engine.arguments.{name} must be a mapping of names to values")
    return dict(value)


def _options(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(
            "engine.arguments.server must be a list of options, such as [--log-verbose=1]"
        )
    for option in value:
        name = str(option).removeprefix("--").partition("=")[0]
        if not re.fullmatch(r"--[a-z][a-z0-9\-]*(=.*)?", str(option)):
            raise ConfigError(
                f"engine.arguments.server: {option} is no option of tritonserver: write "
                "--name=value"
            )
        if name in OWN_OPTIONS:
            raise ConfigError(
                f"engine.arguments.server: --{name} is set by this engine: leave it out"
            )
    return tuple(map(str, value))
