"""Recording of served conversations as training data: OpenAI messages in JSON lines, for `prepare`.

A separate thread writes, so that requests never wait for the disk. A completion is kept only if the
model ended it. Only the last turn is trained on: earlier turns of the assistant have weight 0,
because they were recorded in their own request, or the client made them up.
"""

import fcntl
import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.core.paths import keep_out_of_git
from pipeline.models.chat.messages import Unusable, parse_messages
from pipeline.serving.middleware.transcripts import Exchange

log = logging.getLogger("pipeline.serving")

MAX_WAITING = 1000  # exchanges
MAX_FILE_BYTES = 64 * 2**20
MAX_FILE_SECONDS = 600.0  # from its first line
PART = ".part"  # after the name of a file that is being written
CLOSE_SECONDS = 10
Lines = Callable[[], Iterable[str]]  # called in the thread that writes


class Recorder:
    """Appends to `<folder>/<time>-<random>.jsonl.part`. A file that holds 64 MiB, whose
    first line is ten minutes old, or whose server ends, is complete and loses its `.part`.

    So nothing is ever written to a file that is called `.jsonl`, wherever it was moved. A file that
    a killed server left is completed by the next one that records into the folder. git ignores the
    folder. A full disk, or any other failure to write, ends the recording with one warning; the
    server keeps running. Every line in a file is complete.

    Args:
        setting: that names the folder, for messages.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_file_seconds: float = MAX_FILE_SECONDS,
        setting: str = "serve.record",
    ) -> None:
        self._setting = setting
        self._folder, self._max_file_bytes = folder, max_file_bytes
        self._max_file_seconds = max_file_seconds
        self._waiting: queue.Queue[Lines | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._failed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            keep_out_of_git(folder)
            _complete_left_files(folder)
            self._part = self._open()
        except OSError as error:
            raise ConfigError(
                f"{setting}={folder} cannot be written ({error.strerror}): give another folder"
            ) from error
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """Queue an exchange for writing. Never blocks."""
        self._queue(partial(_lines, exchange))

    def add(self, row: Mapping[str, Any]) -> None:
        """Queue a row for writing. Never blocks."""
        self._queue(lambda: [json.dumps(row, ensure_ascii=False) + "\n"])

    def _queue(self, lines: Lines) -> None:
        if self._failed:
            return
        try:
            self._waiting.put_nowait(lines)
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                log.warning(f"the disk of {self._setting} is too slow: some rows are dropped")

    def close(self) -> None:
        """Write the queued exchanges, unless the disk takes longer than CLOSE_SECONDS."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)

    def _open(self) -> "_Part":
        # Servers in containers share folders and process ids.
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.jsonl"
        return _Part(self._folder / name)

    def _work(self) -> None:
        try:
            while batch := self._next():
                lines = "".join(line for item in batch for line in item()).encode()
                if lines:
                    self._write(lines)
            self._part.complete()
        except OSError as error:
            self._failed = True
            with suppress(OSError):
                self._part.complete()  # with the lines before
            log.warning(
                f"recording has stopped: {self._folder} cannot be written ({error.strerror}): "
                "free some space and restart the server"
            )
        finally:
            self._part.close()

    def _next(self) -> list[Lines]:
        """All that is queued, at least one; none at the end."""
        item = self._get()
        batch = []
        while item is not None:
            batch.append(item)
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return batch
        if batch:  # the end marker came after them
            self._waiting.put(None)
        return batch

    def _get(self) -> Lines | None:
        """What was queued next; None at the end. Meanwhile an old enough file is completed."""
        while True:
            left = self._part.seconds_left(self._max_file_seconds)
            try:
                return self._waiting.get(timeout=left)
            except queue.Empty:
                self._change()

    def _write(self, lines: bytes) -> None:
        """Write all lines or, on a full disk, none. They are synced when this returns."""
        if self._part.is_full(self._max_file_bytes) or not self._part.is_in_place():
            self._change()
        self._part.write(lines)

    def _change(self) -> None:
        self._part.complete()
        self._part = self._open()


class _Part:
    """A file that is being written. Its process holds a lock on it for as long as it lives."""

    def __init__(self, final: Path) -> None:
        self._final = final
        self._path = final.with_name(final.name + PART)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._stream = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        self._first_written: float | None = None

    def seconds_left(self, most: float) -> float | None:
        """Until the file is old enough to be completed; None while it is empty."""
        if self._first_written is None:
            return None
        return max(0.0, self._first_written + most - time.monotonic())

    def is_full(self, most: int) -> bool:
        return self._stream.tell() >= most

    def is_in_place(self) -> bool:
        """Whether it is still where it was opened: somebody may have moved the folder."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._stream.fileno()))
        except OSError:
            return False

    def write(self, lines: bytes) -> None:
        begin = self._stream.tell()
        try:
            left = memoryview(lines)
            while left:
                left = left[self._stream.write(left) :]
            os.fsync(self._stream.fileno())
        except OSError:
            self._stream.truncate(begin)
            raise
        if self._first_written is None:
            self._first_written = time.monotonic()

    def complete(self) -> None:
        """Give it its final name, unless it is empty or was moved away.

        Raises:
            OSError: it cannot be renamed.
        """
        if not self._stream.closed and self.is_in_place():
            if self._stream.tell():
                self._path.rename(self._final)
            else:
                self._path.unlink()
        elif not self._stream.closed:
            log.warning(
                f"{self._path} was moved while it was written: move only files that end in .jsonl, "
                f"and rename it when you have read it (it ends in {PART})"
            )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            keep_out_of_git(self._path.parent)
        self.close()

    def close(self) -> None:
        self._stream.close()


def _complete_left_files(folder: Path) -> None:
    """Complete the files of servers that were killed; of those that run, each holds its lock."""
    for path in sorted(folder.glob(f"*.jsonl{PART}")):
        with path.open("r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            content = stream.read()
            stream.truncate(content.rfind(b"\n") + 1)  # a line may be incomplete
            if b"\n" in content:
                path.rename(path.with_suffix(""))
            else:
                path.unlink()


def _lines(exchange: Exchange) -> Iterator[str]:
    """A line for each completion that the model ended and that `prepare` accepts."""
    request = exchange.request_fields()
    if request.get("tools") or not isinstance(request.get("messages"), list):
        return  # training rows have no tools
    for completion in exchange.completions():
        if not completion.ended_by_model:
            continue
        turns = [*request["messages"], {"role": "assistant", "content": completion.text}]
        try:
            messages = [dict(turn) for turn in parse_messages(turns, answered=True)]
        except Unusable:
            continue
        for turn in messages[:-1]:
            if turn["role"] == "assistant":
                turn["weight"] = 0
        row = {
            "messages": messages,
            "request_id": exchange.id,
            "model": request.get("model"),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"
