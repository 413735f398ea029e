"""Served conversations that training has not seen, and the snapshots of them that it reads.

A server appends to what it records while a run would read it. So what is new is copied into a file
that nothing changes afterwards, `<data.folder>/<data.recorded>/<UTC time>.jsonl`, from which the
same dataset can be made again. A conversation is known by its messages, whatever file it is in.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pipeline.core.errors import DataError, ResourceError
from pipeline.models.chat.messages import Unusable, parse_messages


@dataclass(frozen=True)
class Found:
    """new: lines for a snapshot, each a conversation that is in none. known: how many are.
    unusable: lines that no training row can be made of."""

    new: list[str] = field(default_factory=list)
    known: int = 0
    unusable: int = 0


def look(recordings: Path, snapshots: Path) -> Found:
    """What is recorded below a folder, against the snapshots of before.

    Raises:
        DataError: the folder is none, or cannot be read.
    """
    if not recordings.is_dir():
        raise DataError(
            f"retrain.recordings={recordings} is no folder: give the one that a server records "
            "into, as with `stage=serve serve.record=FOLDER`"
        )
    seen = {found[0] for line in _lines(snapshots) if (found := _conversation(line))}
    new, known, unusable = [], 0, 0
    for line in _lines(recordings):
        found = _conversation(line)
        if found is None:
            unusable += 1
        elif found[0] in seen:
            known += 1
        else:
            seen.add(found[0])
            new.append(found[1])
    return Found(new, known, unusable)


def take(new: list[str], snapshots: Path) -> Path:
    """Write a snapshot, whole or not at all; its file.

    Raises:
        ResourceError: it cannot be written.
    """
    file = snapshots / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.jsonl"
    temporary = file.with_suffix(".tmp")
    try:
        snapshots.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in new)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ResourceError(
            f"{snapshots} cannot be written ({error.strerror}): make room, or give a data.folder "
            "that can be"
        ) from error
    return file


def _lines(folder: Path) -> Iterator[bytes]:
    """Every whole line of the folder's files; a server may be writing the last one."""
    for file in sorted(folder.glob("*.jsonl")):
        try:
            with file.open("rb") as stream:
                yield from (line.rstrip() for line in stream if line.endswith(b"\n"))
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}): mend or move it") from error


def _conversation(line: bytes) -> tuple[str, str] | None:
    """A line's conversation: its digest and the line; None if none that could be trained on."""
    try:
        text = line.decode("utf-8-sig")  # a mark in front, as editors leave it, is no part of it
        messages = parse_messages(json.loads(text)["messages"], answered=True)
    except (ValueError, TypeError, KeyError, RecursionError, Unusable):
        return None
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest(), text
