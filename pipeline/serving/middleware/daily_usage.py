"""What each key used today: requests and tokens of a day in UTC, kept in a file across restarts."""

import asyncio
import logging
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from pipeline.core.errors import ConfigError

log = logging.getLogger("pipeline.serving")

WRITE_SECONDS = 1.0  # between two writes of the file


class Used(BaseModel):
    """What a key used."""

    model_config = ConfigDict(extra="forbid")

    requests: NonNegativeInt = 0
    tokens: NonNegativeInt = 0


class _Day(BaseModel):
    """The file's content. day: as 2026-11-30."""

    model_config = ConfigDict(extra="forbid")

    day: str
    keys: dict[str, Used]


class DailyUsage:
    """Counts of the current day.

    Args:
        file: where they are kept. None: in memory, so a restart begins anew.

    Raises:
        ConfigError: the file is not one of these, or cannot be written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._day, self._used = _today(), dict[str, Used]()
        self._written = 0.0
        self._writing: asyncio.Task[None] | None = None
        self._failed = False
        if file:
            self._used = read_usage(file)
            try:
                self._write()
            except OSError as error:
                raise ConfigError(
                    f"serve.usage_file={file} cannot be written ({error.strerror}): give another"
                ) from error

    def of(self, name: str) -> Used:
        if (today := _today()) != self._day:
            self._day, self._used = today, {}
        return self._used.setdefault(name, Used())

    def count(self, name: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Add to a key's use; negative numbers take back."""
        used = self.of(name)
        used.requests = max(0, used.requests + requests)
        used.tokens = max(0, used.tokens + tokens)
        if self._file and self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    def close(self) -> None:
        if self._file:
            self._try_to_write()

    async def _write_soon(self) -> None:
        await asyncio.sleep(max(0.0, self._written + WRITE_SECONDS - time.monotonic()))
        self._writing = None
        self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self._write()
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("serve.usage_file=%s cannot be written: %s", self._file, error)
            self._failed = True

    def _write(self) -> None:
        assert self._file
        self._written = time.monotonic()
        text = _Day(day=self._day, keys=self._used).model_dump_json()
        work = self._file.with_name(f".{self._file.name}.part")
        with os.fdopen(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(text)
        os.replace(work, self._file)


def read_usage(file: Path) -> dict[str, Used]:
    """What each key used today, by its name; nothing if the file is not there.

    Raises:
        ConfigError: it is not such a file.
    """
    try:
        found = _Day.model_validate_json(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(
            f"{file} is not a file of serve.usage_file ({type(error).__name__}): give another, or "
            "remove it to count from zero"
        ) from error
    return found.keys if found.day == _today() else {}


def seconds_left() -> int:
    """Seconds until the next day in UTC, at least 1."""
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return max(1, round((midnight - now).total_seconds()))


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
