"""Another server of OpenAI's API as an engine: what is written down of it."""

import os
import re
from urllib.parse import urlsplit

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.description import Description
from pipeline.models.chat.renderer import Chat

API_KEY = "REMOTE_API_KEY"  # environment variable; never in a file nor in the log
VERSION = "v1"  # of the API


def describe(engine: EngineConfig, chat: Chat) -> Description:
    """A server that has the model whose tokenizer and template `chat` are.

    Raises:
        ConfigError: engine.arguments does not say where it is, or holds what it does not know.
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
            f"and model; a key is read from the environment, {API_KEY}"
        )
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


def headers() -> dict[str, str]:
    """What a request says of who asks: the key, without the white space around it in a secret.

    Raises:
        ConfigError: the key cannot stand in a header; the message does not quote it.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{API_KEY} holds a line break or another character that no HTTP header may: set it "
            "anew, to one line of plain ASCII"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def without_password(url: str) -> str:
    """A URL as it may stand in a message: without the user and password before its host."""
    return re.sub(r"(?<=//)[^/]*@", "", url)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # as for a port above 65535
        return False
