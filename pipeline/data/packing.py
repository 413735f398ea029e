"""Conversations as bytes: what a million rows of them are in memory.

Python's objects take several times the space of the text that they hold.
"""

import json
from collections.abc import Sequence
from typing import Any

from pipeline.models.chat.messages import Message

Tools = list[dict[str, Any]]


def pack(
    messages: Sequence[Message], rejected: Sequence[Message] | None, tools: Sequence[dict[str, Any]]
) -> bytes:
    """A conversation, of a pair the one with the worse answer, and the tools of both."""
    told = [messages, rejected, tools]
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def unpack(packed: bytes) -> tuple[list[Message], list[Message] | None, Tools]:
    """What `pack` was given."""
    messages, rejected, tools = json.loads(packed.decode("utf-8", "surrogatepass"))
    return messages, rejected, tools
