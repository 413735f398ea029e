"""Conversations that are to be forgotten: no dataset takes them again, wherever a copy turns up.

`stage=lineage lineage.forget=true` lists them in `<data.folder>/<data.recorded>/forgotten.json`, by
their digests alone. A row is forgotten if it begins with the turns of a listed conversation, since
a later turn of the same conversation is recorded with all turns before it. Of an entry that is
"alone", such as a greeting that others begin with as well, only that row itself is.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, ResourceError
from pipeline.core.paths import keep_out_of_git
from pipeline.data.rows import Conversation, Rejected
from pipeline.models.chat.messages import Message

NAME = "forgotten.json"
REASON = "forgotten"


def key_of(messages: Sequence[Message]) -> str:
    """The digest of a conversation: of who said what, without marks for training."""
    said = [
        [turn["role"], " ".join(str(turn["content"]).split()), *_calls(turn)] for turn in messages
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _calls(turn: Message) -> Iterator[object]:
    if calls := turn.get("tool_calls"):
        yield calls


def beginnings(messages: Sequence[Message]) -> Iterator[str]:
    """The digest of the conversation after each answer, the whole one last."""
    for end, turn in enumerate(messages, 1):
        if turn["role"] == "assistant" or end == len(messages):
            yield key_of(messages[:end])


@dataclass(frozen=True)
class Forgotten:
    """keys: digests of conversations, as `key_of` makes them. alone: of those without what follows
    them."""

    keys: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()

    def __contains__(self, messages: Sequence[Message]) -> bool:
        if self.keys and not self.keys.isdisjoint(beginnings(messages)):
            return True
        return bool(self.alone) and key_of(messages) in self.alone

    def check(self, row: Conversation | Rejected) -> Conversation | Rejected:
        """The row; rejected, and without its text, if it was forgotten."""
        if isinstance(row, Rejected):
            return row
        if row.messages in self or (row.rejected is not None and row.rejected in self):
            return Rejected(
                row.file, row.line, REASON, f"stage=lineage listed it in {NAME}", excerpt=""
            )
        return row


def read_forgotten(folder: Path) -> Forgotten:
    """What a folder of snapshots lists.

    Raises:
        DataError: the list cannot be read. Without it, what was forgotten could be trained on.
    """
    file = folder / NAME
    try:
        entries = _entries(file)
        alone = frozenset(entry["sha256"] for entry in entries if entry.get("alone"))
        return Forgotten(frozenset(entry["sha256"] for entry in entries) - alone, alone)
    except FileNotFoundError:
        return Forgotten()
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{file}, the list of conversations to forget, cannot be read ({error}): restore it "
            "from a backup; without it they could be trained on again"
        ) from error


def _entries(file: Path) -> list[dict[str, Any]]:
    entries = json.loads(file.read_bytes())["conversations"]
    if not all(len(entry["sha256"]) == 64 for entry in entries):
        raise ValueError("an entry has no sha256")
    return list(entries)


def add_forgotten(folder: Path, keys: Iterable[str], alone: Iterable[str] = ()) -> Path:
    """List conversations in a folder of snapshots; the list's file.

    Raises:
        DataError: the list that is there cannot be read. ResourceError: it cannot be written.
    """
    known, file = read_forgotten(folder), folder / NAME
    entries = _entries(file) if known.keys or known.alone else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    listed = {*keys} - known.keys
    entries = [entry for entry in entries if entry["sha256"] not in listed]
    entries += [{"sha256": key, "time": now} for key in sorted(listed)]
    more = {*alone} - known.keys - known.alone - listed
    entries += [{"sha256": key, "time": now, "alone": True} for key in sorted(more)]
    text = json.dumps({"conversations": entries}, indent=1) + "\n"
    write_whole(file, text.encode())
    return file


def write_whole(file: Path, content: bytes) -> None:
    """Write a file of conversations, whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        keep_out_of_git(file.parent)
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ResourceError(
            f"{file} cannot be written ({error.strerror}): free the disk, or allow it"
        ) from error
