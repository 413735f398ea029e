"""Where an endpoint is, its key, and what its errors say. Imports nothing heavy."""

import json
import os
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from pipeline.core import secrets
from pipeline.core.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # compared, never listened on


def headers(variable: str) -> dict[str, str]:
    """Headers of a request: the key in an environment variable, without white space around it.

    Empty if the variable is not set. From here on the key is masked wherever it would be written.

    Raises:
        ConfigError: the key cannot be part of a header; the message does not quote it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{variable} holds a line break or another character that an HTTP header cannot have: "
            "set it to one line of plain ASCII"
        )
    secrets.remember({"api_key": key})
    return {"Authorization": f"Bearer {key}"} if key else {}


def without_password(url: str) -> str:
    """A URL for messages: without the user and password before its host."""
    return re.sub(r"(?<=//)[^/]*@", "", url)


def is_url(text: str, schemes: Collection[str] = ("http", "https")) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # as for a port above 65535
        return False


def is_loopback(url: str) -> bool:
    """Whether it is on this machine, where no proxy may stand between."""
    return urlsplit(url).hostname in LOOPBACK


def message(text: str) -> str:
    """The message of an error, in the format of OpenAI's API."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:200]  # such as an error page of a web server
