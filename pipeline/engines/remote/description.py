"""Another server with OpenAI's API as an engine: its settings and description."""

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

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
    if not _is_url(url) or not model:
        raise ConfigError(
            "engine=remote needs engine.arguments.base_url=http://host:port/v1 and "
            "engine.arguments.model=<what that server calls it>"
        )
    if given:
        raise ConfigError(
            f"engine=remote does not know engine.arguments.{next(iter(given))}: it takes base_url "
            f"and model; the key is read from the environment variable {API_KEY}"
        )


def headers() -> dict[str, str]:
    """Headers of a request: the key, without the white space that a secret may have around it.

    Raises:
        ConfigError: the key cannot be part of a header; the message does not quote it.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{API_KEY} holds a line break or another character that an HTTP header cannot have: "
            "set it to one line of plain ASCII"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def without_password(url: str) -> str:
    """A URL for messages: without the user and password before its host."""
    return re.sub(r"(?<=//)[^/]*@", "", url)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # as for a port above 65535
        return False
