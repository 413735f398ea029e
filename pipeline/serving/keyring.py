"""API keys, their models, limits and share of the engine, stored as digests.

The file has one JSON object per line. `python -m pipeline.serving.keys` (keys.py) writes it:

    {"name": "anna", "sha256": "…", "requests_per_minute": 60, "expires": "2027-01-31T00:00:00Z"}

A key is 256 random bits, so SHA-256 is a suitable digest: no dictionary attack is possible. The
slow digests that passwords need would cost 50 ms per request and make an attack no harder.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import ConfigError
from pipeline.engines.base import Client
from pipeline.serving.address import API_KEY

log = logging.getLogger("pipeline.serving")

ENVIRONMENT = "environment"  # the name of the key in SERVE_API_KEY, reserved for it
REFRESH_SECONDS = 1.0
Limit = Annotated[int, Field(ge=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Former(BaseModel):
    """The digest that a key had before `keys rotate`, and until when it is valid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Digest
    until: AwareDatetime


class Key(BaseModel):
    """One line of the file. None means no limit, or all models.

    requests_per_day, tokens_per_day: of a day in UTC.
    weight: a key of weight 2 gets twice the running answers of a key of weight 1, when both wait.
    priority: waiting requests of a key with a higher one go first.
    admin: whether the key may load and unload LoRA adapters.
    guardrails: configurations of serve.guardrails that check the key's requests; None: the model's,
        or the default ones.
    documents: labels of index.labels whose documents it may see beside those without; "*": all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    sha256: Digest
    former: Former | None = None
    expires: AwareDatetime | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    requests_per_day: Limit | None = None
    tokens_per_day: Limit | None = None
    weight: float = Field(default=1.0, ge=0.01, le=100)
    priority: int = Field(default=0, ge=-100, le=100)
    models: tuple[str, ...] | None = None
    admin: bool = False
    guardrails: tuple[str, ...] | None = None
    documents: tuple[str, ...] = ()

    def allows(self, model: str) -> bool:
        return self.models is None or model in self.models

    def has_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC) >= self.expires

    def client(self, connection: str) -> Client:
        """Who asks, for the engine's queue."""
        return Client(f"key {self.name}", connection, self.weight, self.priority)

    @property
    def has_share(self) -> bool:
        """Whether its requests are not served like those of other keys."""
        return self.weight != 1 or self.priority != 0


def digest(key: str | bytes) -> str:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


class Keyring:
    """The keys in a file and in SERVE_API_KEY. Without both, requests need no key.

    A changed file is read again, at most once per second. If it cannot be read, the keys stay as
    they were.

    Attributes:
        on_change: called with the names of keys that were added, removed or changed.

    Raises:
        ConfigError: the file cannot be read, a line is wrong, or SERVE_API_KEY is blank.
    """

    def __init__(
        self, file: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        given = (environment or {}).get(API_KEY, "")
        if given and not (given := given.strip()):
            raise ConfigError(f"{API_KEY} is blank: set it to a key, or unset it to require none")
        self._fixed = [Key(name=ENVIRONMENT, sha256=digest(given), admin=True)] if given else []
        self._file = file
        self._no_shares: str | None = None
        self.on_change: Callable[[dict[str, list[str]]], None] = lambda changes: None
        self._checked = time.monotonic()
        self._version = _version(file) if file else None
        self._keys = self._fixed + (read_keys(file) if file else [])

    @property
    def requires_key(self) -> bool:
        """Whether requests need a key. With a file they do, even if the file is empty."""
        return bool(self._fixed or self._file)

    @property
    def names(self) -> list[str]:
        return [key.name for key in self._keys]

    def refuse_shares(self, runtime: str) -> None:
        """Refuse weights and priorities, now and in a changed file: this engine orders requests.

        Raises:
            ConfigError: a key has one.
        """
        self._no_shares = runtime
        self._check(self._keys)

    def find(self, given: bytes | None) -> Key | None:
        """The key that a client sent, which may have expired; None if there is no such key.

        Takes the same time for a wrong and for a missing key: all digests are compared in full.
        """
        self._refresh()
        found, given_digest = None, digest(given or b"")
        for key in self._keys:
            if hmac.compare_digest(given_digest, key.sha256):
                found = key
            former = key.former
            if former and hmac.compare_digest(given_digest, former.sha256):
                found = key.model_copy(update={"expires": former.until})
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._checked < REFRESH_SECONDS:
            return
        self._checked = now
        if (version := _version(self._file)) == self._version:
            return
        self._version = version
        try:
            keys = self._fixed + read_keys(self._file)
            self._check(keys)
        except ConfigError as error:
            log.warning("the changed keys file is ignored, the earlier keys stay valid: %s", error)
            return
        before, after = {k.name: k for k in self._keys}, {k.name: k for k in keys}
        self._keys = keys
        changes = {
            "added": sorted(after.keys() - before),
            "removed": sorted(before.keys() - after),
            "changed": sorted(n for n in before.keys() & after if before[n] != after[n]),
        }
        log.info("keys read again", extra=changes)
        self.on_change(changes)

    def _check(self, keys: list[Key]) -> None:
        odd = next((key.name for key in keys if key.has_share), None)
        if self._no_shares and odd:
            raise ConfigError(
                f"serve.keys_file={self._file}: the key {odd} has a weight or a priority, and the "
                f"{self._no_shares} engine orders requests by itself: remove them, or serve with "
                "engine=onnxruntime or hf"
            )


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(file: Path) -> list[Key]:
    """
    Raises:
        ConfigError: the file cannot be read, or a line is wrong; the message names it.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"serve.keys_file={file} cannot be read ({error}): create one with "
            f"`python -m pipeline.serving.keys new NAME --file {file}`"
        ) from error
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            keys.append(Key.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the line"
            raise ConfigError(f"{file}:{number}: {field}: {first['msg']}") from None
        if keys[-1].name in {key.name for key in keys[:-1]} | {ENVIRONMENT}:
            raise ConfigError(
                f"{file}:{number}: the name {keys[-1].name} is used twice: choose another"
            )
    return keys
