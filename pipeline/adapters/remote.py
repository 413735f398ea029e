"""Another server of OpenAI's API as an engine: what is written down of it."""

from pipeline.chat import Chat
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError
from pipeline.serving.description import Description

API_KEY = "REMOTE_API_KEY"  # environment variable; never in a file nor in the log
VERSION = "v1"  # of the API


def describe(engine: EngineConfig, chat: Chat) -> Description:
    """A server that has the model whose tokenizer and template `chat` are.

    Raises:
        ConfigError: engine.arguments does not say where it is, or holds what it does not know.
    """
    given = dict(engine.arguments)
    url, model = str(given.pop("base_url", None) or ""), str(given.pop("model", None) or "")
    if not url.startswith(("http://", "https://")) or not model:
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
