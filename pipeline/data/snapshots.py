"""New recorded conversations, and the snapshots of them that training reads.

A server appends to its recordings while a run reads them. So new conversations are copied into a
file that nothing changes afterwards, `<data.folder>/<data.recorded>/<UTC time>.jsonl`, from which
the same dataset can be made again. Conversations with the same messages are the same conversation,
whatever file they are in.
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
from pipeline.core.paths import keep_out_of_git
from pipeline.data.forgotten import read_forgotten
from pipeline.models.chat.messages import Message, Unusable, parse_messages


@dataclass(frozen=True)
class Recorded:
    """What is in a folder of recordings.

    new: lines for a snapshot, each a conversation that is in no snapshot yet. known: number of
    conversations that are in one. unusable: number of lines that cannot become a training row.
    forgotten: number of those that are to be forgotten (data/forgotten.py).
    """

    new: list[str] = field(default_factory=list)
    known: int = 0
    unusable: int = 0
    forgotten: int = 0


def find_new(recordings: Path, snapshots: Path) -> Recorded:
    """Compare the recordings in a folder with the earlier snapshots.

    Raises:
        DataError: the folder does not exist or cannot be read.
    """
    if not recordings.is_dir():
        raise DataError(
            f"retrain.recordings={recordings} is not a folder: name the one that a server records "
            "into, as in `stage=serve serve.record=FOLDER`"
        )
    seen = {found[0] for line in _lines(snapshots) if (found := _conversation(line))}
    listed = read_forgotten(snapshots)
    new, known, unusable, forgotten = [], 0, 0, 0
    for line in _lines(recordings):
        found = _conversation(line)
        if found is None:
            unusable += 1
        elif found[2] in listed:
            forgotten += 1
        elif found[0] in seen:
            known += 1
        else:
            seen.add(found[0])
            new.append(found[1])
    return Recorded(new, known, unusable, forgotten)


def write_snapshot(new: list[str], snapshots: Path) -> Path:
    """Write a snapshot, whole or not at all. Returns its file.

    Raises:
        ResourceError: it cannot be written.
    """
    file = snapshots / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.jsonl"
    temporary = file.with_suffix(".tmp")
    try:
        snapshots.mkdir(parents=True, exist_ok=True)
        keep_out_of_git(snapshots)
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in new)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ResourceError(
            f"{snapshots} cannot be written ({error.strerror}): free disk space, or choose a "
            "data.folder that is writable"
        ) from error
    return file


def _lines(folder: Path) -> Iterator[bytes]:
    """Every complete line of the folder's files; a server may still be writing the last one."""
    for file in sorted(folder.glob("*.jsonl")):
        try:
            with file.open("rb") as stream:
                yield from (line.rstrip() for line in stream if line.endswith(b"\n"))
        except OSError as error:
            raise DataError(
                f"{file} cannot be read ({error.strerror}): correct or remove it"
            ) from error


def _conversation(line: bytes) -> tuple[str, str, list[Message]] | None:
    """The digest of a line's conversation, the line, and its messages; None if nothing can train on
    it."""
    try:
        text = line.decode("utf-8-sig")  # without the byte order mark that some editors write
        messages = parse_messages(json.loads(text)["messages"], answered=True)
    except (ValueError, TypeError, KeyError, RecursionError, Unusable):
        return None
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    return digest, text, messages
