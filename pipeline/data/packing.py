"""Conversations as bytes: what a million rows of them are in memory.

Python's objects take several times the space of the text that they hold.
"""

import json
import zlib
from array import array
from collections.abc import Sequence
from typing import Any

from pipeline.models.chat.messages import Message

_QUICK = 1  # level of compression
Tools = list[dict[str, Any]]


def pack(
    messages: Sequence[Message], rejected: Sequence[Message] | None, tools: Sequence[dict[str, Any]]
) -> bytes:
    """A conversation, of a pair the one with the worse answer, and the tools of both."""
    told = [messages, rejected, tools]
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return zlib.compress(text.encode("utf-8", "surrogatepass"), _QUICK)


def unpack(packed: bytes) -> tuple[list[Message], list[Message] | None, Tools]:
    """What `pack` was given."""
    messages, rejected, tools = json.loads(zlib.decompress(packed).decode("utf-8", "surrogatepass"))
    return messages, rejected, tools


def pack_ids(ids: "array[int]") -> "array[int]":
    """Token ids, of two bytes each where they fit."""
    return array("H", ids) if max(ids, default=0) < 2**16 else ids


def pack_mask(mask: bytes) -> bytes:
    """A loss mask, which is a few runs of the same byte."""
    return zlib.compress(mask, _QUICK)


def unpack_mask(packed: bytes) -> bytes:
    """What `pack_mask` was given."""
    return zlib.decompress(packed)
