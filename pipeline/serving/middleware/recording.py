"""Recording of served conversations as training data: OpenAI messages in JSON lines, for `prepare`.

A separate thread writes, so that requests never wait for the disk. A completion is kept only if the
model ended it. Only the last turn is trained on: earlier turns of the assistant have weight 0,
because they were recorded in their own request, or the client made them up.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import ConfigError
from pipeline.models.chat.messages import Unusable, parse_messages
from pipeline.serving.middleware.transcripts import Exchange

log = logging.getLogger("pipeline.serving")

MAX_WAITING = 1000  # exchanges
MAX_FILE_BYTES = 64 * 2**20
CLOSE_SECONDS = 10


class Recorder:
    """Appends to `<folder>/<time>-<process>-<number>.jsonl`, and starts a new file after 64 MiB.

    A full disk, or any other failure to write, ends the recording with one warning; the server
    keeps running. Every line in a file is complete.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._folder, self._max_file_bytes = folder, max_file_bytes
        self._waiting: queue.Queue[Exchange | None] = queue.Queue(MAX_WAITING)
        self._files = 0
        self._dropped = 0
        self._failed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = self._open()
        except OSError as error:
            raise ConfigError(
                f"serve.record={folder} cannot be written ({error.strerror}): give another folder"
            ) from error
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """Queue an exchange for writing. Never blocks."""
        if self._failed:
            return
        try:
            self._waiting.put_nowait(exchange)
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                log.warning("the disk of serve.record is too slow: some conversations are dropped")

    def close(self) -> None:
        """Write the queued exchanges, unless the disk takes longer than CLOSE_SECONDS."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)

    def _open(self) -> BinaryIO:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}-{self._files}.jsonl"
        self._files += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        return os.fdopen(os.open(self._folder / name, flags, 0o600), "wb", buffering=0)

    def _work(self) -> None:
        try:
            while batch := self._next():
                self._write("".join(line for item in batch for line in _lines(item)).encode())
        except OSError as error:
            self._failed = True
            log.warning(
                f"recording has stopped: {self._folder} cannot be written ({error.strerror}): "
                "free some space and restart the server"
            )
        finally:
            self._stream.close()

    def _next(self) -> list[Exchange]:
        """All queued exchanges, at least one; none at the end."""
        item = self._waiting.get()
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

    def _write(self, lines: bytes) -> None:
        """Write all lines or, on a full disk, none. They are synced when this returns."""
        if self._stream.tell() >= self._max_file_bytes:
            self._stream.close()
            self._stream = self._open()
        begin = self._stream.tell()
        try:
            left = memoryview(lines)
            while left:
                left = left[self._stream.write(left) :]
            os.fsync(self._stream.fileno())
        except OSError:
            self._stream.truncate(begin)
            raise


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
