"""API keys: who may ask, for which models, and how much a minute. Kept as digests.

    python -m pipeline.serving.keys new anna --file keys.jsonl --requests-per-minute 60

makes a key, shows it this once and adds its line to the file; deleting the line revokes the key,
without a restart. A file has one JSON object a line:

    {"name": "anna", "sha256": "…", "requests_per_minute": 60, "tokens_per_minute": null,
     "models": null, "admin": false}

A key is 256 random bits, so SHA-256 is the right digest for it: there is no dictionary to try, and
the slow digests that passwords need would cost each request 50 ms and an attacker nothing more.
"""

import argparse
import hashlib
import hmac
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import ConfigError
from pipeline.serving.address import API_KEY

log = logging.getLogger("pipeline.serving")

PREFIX = "sk-"
KEY_BYTES = 32
ENVIRONMENT = "environment"  # the name of SERVE_API_KEY's, which no other may have
REFRESH_SECONDS = 1.0
PerMinute = Annotated[int, Field(ge=1)]


class Key(BaseModel):
    """A key's line. None is no limit, or every model. admin: may also load and unload adapters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    models: tuple[str, ...] | None = None
    admin: bool = False

    def allows(self, model: str) -> bool:
        return self.models is None or model in self.models


def digest(key: str | bytes) -> str:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


class Keyring:
    """The keys of a file, if there is one, and of the environment; none of either asks for none.

    A file that changes is read again, at most once a second. One that can then not be read leaves
    the keys as they were.

    Raises:
        ConfigError: the file cannot be read, or which line is wrong and why; or the environment's
            key is blank.
    """

    def __init__(
        self, file: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        given = (environment or {}).get(API_KEY, "")
        if given and not (given := given.strip()):
            raise ConfigError(f"{API_KEY} is blank: set it to a key, or unset it to ask for none")
        self._fixed = [Key(name=ENVIRONMENT, sha256=digest(given), admin=True)] if given else []
        self._file = file
        self._checked = time.monotonic()
        self._version = _version(file) if file else None
        self._keys = self._fixed + (read_keys(file) if file else [])

    @property
    def asks(self) -> bool:
        """Whether a request needs a key; with a file it does, though the file may be empty."""
        return bool(self._fixed or self._file)

    def find(self, given: bytes | None) -> Key | None:
        """The key that a client gave; None if it is no key.

        Takes the same time for a wrong and a missing one: every digest is compared, in full.
        """
        self._refresh()
        found, looked_for = None, digest(given or b"")
        for key in self._keys:
            if hmac.compare_digest(looked_for, key.sha256):
                found = key
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
            self._keys = self._fixed + read_keys(self._file)
        except ConfigError as error:
            log.warning("keys stay as they were: %s", error)


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(file: Path) -> list[Key]:
    """
    Raises:
        ConfigError: the file cannot be read, or which line is wrong and why.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"serve.keys_file={file} cannot be read ({error}): make one with "
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
            raise ConfigError(f"{file}:{number}: the name {keys[-1].name} is taken: choose another")
    return keys


def main(arguments: list[str] | None = None) -> int:
    """Make a key. Standard output has the key alone, so that it can be piped into a vault."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.serving.keys", description="API keys of the server."
    )
    new = parser.add_subparsers(required=True).add_parser("new", help="make a key, shown once")
    new.add_argument("name", help="whose it is; stands in the log")
    new.add_argument("--file", type=Path, help="serve.keys_file, to which its line is added")
    new.add_argument("--requests-per-minute", type=int)
    new.add_argument("--tokens-per-minute", type=int, help="of prompts and answers together")
    new.add_argument("--models", nargs="+", metavar="MODEL", help="that it may ask (default: all)")
    new.add_argument("--admin", action="store_true", help="may load and unload adapters")
    given = parser.parse_args(arguments)
    secret = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    try:
        key = Key(
            name=given.name,
            sha256=digest(secret),
            requests_per_minute=given.requests_per_minute,
            tokens_per_minute=given.tokens_per_minute,
            models=given.models,
            admin=given.admin,
        )
        if key.name == ENVIRONMENT:
            raise ConfigError(f"the name {key.name} is that of {API_KEY}: choose another")
        if given.file:
            _add(given.file, key)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        print(f"pipeline: {first['loc'][0]}={first['input']!r}: {first['msg']}", file=sys.stderr)
        return ConfigError.exit_code
    except ConfigError as error:
        print(f"pipeline: ConfigError: {error}", file=sys.stderr)
        return error.exit_code
    print(secret)
    place = f"added to {given.file}" if given.file else f"add to your keys file: {_line(key)}"
    print(f"the key is shown this once; {place}", file=sys.stderr)
    return 0


def _add(file: Path, key: Key) -> None:
    if file.exists() and key.name in {known.name for known in read_keys(file)}:
        raise ConfigError(f"{file} has a key named {key.name}: choose another name, or delete it")
    try:
        # Readable by nobody else: the digests betray no key, but the names and limits are private.
        with os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+") as stream:
            whole = stream.read()
            stream.write(("" if whole.endswith("\n") or not whole else "\n") + _line(key) + "\n")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): choose another") from error


def _line(key: Key) -> str:
    return json.dumps(key.model_dump(mode="json"))


if __name__ == "__main__":
    sys.exit(main())
