"""API keys, their models and their limits, stored as digests.

    python -m pipeline.serving.keys new anna --file keys.jsonl --requests-per-minute 60

creates a key, prints it once, and adds its line to the file. Deleting the line revokes the key,
without a restart. The file has one JSON object per line:

    {"name": "anna", "sha256": "…", "requests_per_minute": 60, "tokens_per_minute": null,
     "models": null, "admin": false, "guardrails": null}

A key is 256 random bits, so SHA-256 is a suitable digest: no dictionary attack is possible. The
slow digests that passwords need would cost 50 ms per request and make an attack no harder.
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
ENVIRONMENT = "environment"  # the name of the key in SERVE_API_KEY, reserved for it
REFRESH_SECONDS = 1.0
PerMinute = Annotated[int, Field(ge=1)]


class Key(BaseModel):
    """One line of the file. None means no limit, or all models.

    admin: whether the key may load and unload LoRA adapters.
    guardrails: configurations of serve.guardrails that check the key's requests; None: the model's,
        or the default ones.
    documents: labels of index.labels whose documents it may see beside those without; "*": all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    models: tuple[str, ...] | None = None
    admin: bool = False
    guardrails: tuple[str, ...] | None = None
    documents: tuple[str, ...] = ()

    def allows(self, model: str) -> bool:
        return self.models is None or model in self.models


def digest(key: str | bytes) -> str:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


class Keyring:
    """The keys in a file and in SERVE_API_KEY. Without both, requests need no key.

    A changed file is read again, at most once per second. If it cannot be read, the keys stay as
    they were.

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
        self._checked = time.monotonic()
        self._version = _version(file) if file else None
        self._keys = self._fixed + (read_keys(file) if file else [])

    @property
    def requires_key(self) -> bool:
        """Whether requests need a key. With a file they do, even if the file is empty."""
        return bool(self._fixed or self._file)

    def find(self, given: bytes | None) -> Key | None:
        """The key that a client sent; None if it is not valid.

        Takes the same time for a wrong and for a missing key: all digests are compared in full.
        """
        self._refresh()
        found, given_digest = None, digest(given or b"")
        for key in self._keys:
            if hmac.compare_digest(given_digest, key.sha256):
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
            log.warning("the changed keys file is ignored, the earlier keys stay valid: %s", error)


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


def main(arguments: list[str] | None = None) -> int:
    """Create a key. Standard output has only the key, so that it can be piped into a vault."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.serving.keys", description="Creates API keys for the server."
    )
    new = parser.add_subparsers(required=True).add_parser("new", help="create a key, printed once")
    new.add_argument("name", help="the owner, written to the log with each request")
    new.add_argument("--file", type=Path, help="the file of serve.keys_file, to add the key to")
    new.add_argument("--requests-per-minute", type=int, help="default: no limit")
    new.add_argument(
        "--tokens-per-minute", type=int, help="of prompts and completions (default: no limit)"
    )
    new.add_argument(
        "--models", nargs="+", metavar="MODEL", help="models that it may use (default: all)"
    )
    new.add_argument("--admin", action="store_true", help="may load and unload LoRA adapters")
    new.add_argument(
        "--guardrails",
        nargs="*",
        metavar="CONFIGURATION",
        help="configurations of serve.guardrails for its requests (default: the model's)",
    )
    new.add_argument(
        "--documents",
        nargs="*",
        default=[],
        metavar="LABEL",
        help="labels of index.labels whose documents it may see (default: none; '*': all)",
    )
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
            guardrails=given.guardrails,
            documents=given.documents,
        )
        if key.name == ENVIRONMENT:
            raise ConfigError(f"the name {key.name} is reserved for {API_KEY}: choose another")
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
    place = f"added to {given.file}" if given.file else f"add this to your keys file: {_line(key)}"
    print(f"the key is not shown again; {place}", file=sys.stderr)
    return 0


def _add(file: Path, key: Key) -> None:
    if file.exists() and key.name in {known.name for known in read_keys(file)}:
        raise ConfigError(
            f"{file} already has a key named {key.name}: choose another name, or delete that line"
        )
    try:
        # Only the owner can read it: digests reveal no key, but names and limits are private.
        with os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+") as stream:
            content = stream.read()
            newline = "" if content.endswith("\n") or not content else "\n"
            stream.write(newline + _line(key) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written ({error.strerror}): give another file"
        ) from error


def _line(key: Key) -> str:
    return json.dumps(key.model_dump(mode="json"))


if __name__ == "__main__":
    sys.exit(main())
