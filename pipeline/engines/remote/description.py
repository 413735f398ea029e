"""Another server with OpenAI's API as an engine: its settings and description."""

from typing import TYPE_CHECKING

from pipeline.client.addresses import is_url
from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.description import Description

if TYPE_CHECKING:
    from pipeline.models.chat.renderer import Chat

API_KEY = "REMOTE_API_KEY"  # environment variable; never written to a file or the log
VERSION = "v1"  # of the API
FEATURES = frozenset({"penalties", "logit_bias"})


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
    if not is_url(url) or not model:
        raise ConfigError(
            "engine=remote needs engine.arguments.base_url=http://host:port/v1 and "
            "engine.arguments.model=<what that server calls it>"
        )
    if given:
        raise ConfigError(
            f"engine=remote does not know engine.arguments.{next(iter(given))}: it takes base_url "
            f"and model; the key is read from the environment variable {API_KEY}"
        )
