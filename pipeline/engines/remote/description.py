"""Another server as an engine, of OpenAI's API or KServe's protocol: settings and description."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.client.addresses import is_url
from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.description import Description

if TYPE_CHECKING:
    from pipeline.models.chat.renderer import Chat

API_KEY = "REMOTE_API_KEY"  # environment variable; never written to a file or the log
VERSION = "v1"  # of the API
FEATURES = frozenset({"penalties", "logit_bias"})
GRPC = ("grpc", "grpcs")


def is_kserve(url: str) -> bool:
    """Whether a server's address is of KServe's protocol: grpc://host:8001, http://host:8000/v2."""
    parts = urlsplit(url)
    return parts.scheme in GRPC or parts.path.rstrip("/").endswith("/v2")


def describe(engine: EngineConfig, chat: "Chat") -> Description:
    """The description of a server that has the model with this tokenizer and template.

    Raises:
        ConfigError: engine.arguments does not say where it is, or has an unknown key.
    """
    check_arguments(engine)
    url, model = str(engine.arguments["base_url"]), str(engine.arguments["model"])
    return Description(
        runtime="remote",
        version=VERSION,
        precision="unknown",
        hardware={},
        rendering=chat.sha256,
        max_batch_size=engine.max_batch_size,
        max_input_len=engine.max_input_len,
        max_seq_len=engine.max_seq_len,
        settings={"base_url": url.rstrip("/"), "model": model},
    )


def check_arguments(engine: EngineConfig) -> None:
    """
    Raises:
        ConfigError: engine.arguments does not say where the server is, or has an unknown key.
    """
    given = dict(engine.arguments)
    url, model = str(given.pop("base_url", None) or ""), str(given.pop("model", None) or "")
    if not is_url(url, ("http", "https", *GRPC)) or not model:
        raise ConfigError(
            "engine=remote needs engine.arguments.base_url=http://host:port/v1 (or Triton's "
            "grpc://host:8001 or http://host:8000/v2) and engine.arguments.model=<what that server "
            "calls it>"
        )
    if given:
        raise ConfigError(
            f"engine=remote does not know engine.arguments.{next(iter(given))}: it takes base_url "
            f"and model; the key is read from the environment variable {API_KEY}"
        )
