"""The audit log: who asked for what, who was refused, and what changed, in lines that cannot be
changed unseen.

Each line has the digest of the line before it. `python -m pipeline.serving.audit FILE` checks them.
A line has no prompt, no answer and no key. While a line cannot be written, requests that it would
be about are answered with 503.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.core.errors import ConfigError, DataError
from pipeline.serving.middleware import request_context
from pipeline.serving.middleware.request_context import RequestContext
from pipeline.serving.openai import errors

log = logging.getLogger("pipeline.serving")

START = "0" * 64  # stands for the line before the first one
PREVIOUS = "previous"
TAIL_BYTES = 65_536  # far more than a line has


class AuditLog:
    """A file that lines are added to. A file that was moved away, as logrotate does, is made anew,
    and its first line continues the chain.

    Raises:
        ConfigError: the file cannot be written, or its last line is none of these.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._pending: list[dict[str, Any]] = []
        try:
            self._previous = _last_digest(file)
            self._stream = self._open()
        except OSError as error:
            raise ConfigError(
                f"serve.audit_log={file} cannot be written ({error.strerror}): give another file"
            ) from error
        except DataError as error:
            raise ConfigError(f"serve.audit_log={file}: {error}") from error

    def add(self, event: str, facts: Mapping[str, Any]) -> None:
        """Add a line, after those that could not be written before."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {name: value for name, value in facts.items() if value is not None}
        with self._lock:
            self._pending.append({"time": now, "event": event, **known})
        self.is_writable()

    def is_writable(self) -> bool:
        """Whether every line is in the file; tries again if one is not."""
        with self._lock:
            try:
                while self._pending:
                    self._write(self._pending[0])
                    del self._pending[0]
            except OSError as error:
                log.error("serve.audit_log=%s cannot be written: %s", self._file, error.strerror)
                return False
        return True

    def close(self) -> None:
        self.add("server_stopped", {})
        self._stream.close()

    def _write(self, facts: dict[str, Any]) -> None:
        try:
            moved = os.stat(self._file).st_ino != os.fstat(self._stream.fileno()).st_ino
        except FileNotFoundError:
            moved = True
        if moved:
            self._stream.close()
            self._stream = self._open()
        line = json.dumps({**facts, PREVIOUS: self._previous}, ensure_ascii=False).encode()
        size = os.fstat(self._stream.fileno()).st_size
        try:
            written = self._stream.write(line + b"\n")
            if written != len(line) + 1:
                raise OSError(28, "no space left")
        except OSError:
            os.ftruncate(self._stream.fileno(), size)  # half a line would end the chain
            raise
        self._previous = hashlib.sha256(line).hexdigest()

    def _open(self) -> Any:
        handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(handle, "ab", buffering=0)


class AuditMiddleware:
    """Adds a line for each request that needs a key, or would if there were keys."""

    def __init__(self, app: ASGIApp, audit: AuditLog, open_paths: frozenset[str]) -> None:
        self._app, self._audit, self._open_paths = app, audit, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        if not self._audit.is_writable():
            text = "the audit log cannot be written: the server's log says why"
            body = errors.error_body(text, "server_error", code="audit_log_failed")
            await JSONResponse(body, 503, {"Retry-After": "5"})(scope, receive, send)
            return
        status: int | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            context = request_context.current()
            self._audit.add(_event(scope, status), _facts(context, scope, status))


def _event(scope: Scope, status: int | None) -> str:
    if status == 401:
        return "key_refused"
    return "adapter" if scope["path"].endswith("_lora_adapter") else "request"


def _facts(context: RequestContext, scope: Scope, status: int | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "request_id": context.id,
        "key": context.key.name if context.key else None,
        "client": context.peer[0] if context.peer else None,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": context.late_status or status,
        "model": context.model[:200] if context.model else None,
        "error": context.error[:200] if context.error else None,
        "guardrails": context.guardrails or None,
    }
    if context.prompt_tokens:
        facts |= {"prompt_tokens": context.prompt_tokens, "tokens": context.completion_tokens}
    return facts


def _last_digest(file: Path) -> str:
    """The digest of a file's last line.

    Raises:
        DataError: that line is none of the audit log's. OSError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
            tail = stream.read()
    except FileNotFoundError:
        return START
    if not tail:
        return START
    line = tail.removesuffix(b"\n").rpartition(b"\n")[2]
    if not tail.endswith(b"\n") or not _is_line(line):
        raise DataError("the last line is not whole, or none of an audit log: move the file away")
    return hashlib.sha256(line).hexdigest()


def _is_line(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get(PREVIOUS), str)


def check(files: list[Path]) -> int:
    """Check the lines of files, the oldest first, and return how many there are.

    Raises:
        DataError: a line was changed, added or removed; names file and line.
    """
    previous, count = None, 0
    for file in files:
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if not _is_line(line):
                raise DataError(f"{file}:{number} is no line of an audit log")
            if previous is not None and json.loads(line)[PREVIOUS] != previous:
                raise DataError(
                    f"{file}:{number} does not follow the line before it: one of the two was "
                    "changed, or a line between them was removed"
                )
            previous = hashlib.sha256(line).hexdigest()
            count += 1
    return count
