"""API keys: make, list, rotate and revoke them. A running server reads the changed file again.

    python -m pipeline.serving.keys new anna --file keys.jsonl --requests-per-minute 60
    python -m pipeline.serving.keys list --file keys.jsonl
    python -m pipeline.serving.keys rotate anna --file keys.jsonl
    python -m pipeline.serving.keys revoke anna --file keys.jsonl

A key is printed once, by `new` and by `rotate`; the file has its digest.
"""

import argparse
import fcntl
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from pipeline.core.commands import Parser, run_command
from pipeline.core.errors import ConfigError, shown
from pipeline.serving.address import API_KEY
from pipeline.serving.keyring import ENVIRONMENT, Former, Key, digest, read_keys
from pipeline.serving.middleware.daily_usage import read_usage

PREFIX = "sk-"
KEY_BYTES = 32
# Of a key's line: what `new` has an option for.
LIMITS = ("requests_per_minute", "tokens_per_minute", "requests_per_day", "tokens_per_day")
MOST_DAYS = 36_500.0


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Standard output has only the key, so that it can be piped into a vault."""
    given = _parser().parse_args(arguments)
    return run_command(lambda: _run(given), files=(given.file,))


def _run(given: argparse.Namespace) -> None:
    try:
        given.command(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{first['loc'][0]}={shown(first['input'])}: {first['msg']}") from None


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pipeline.serving.keys",
        description="Makes, lists, rotates and revokes API keys of the server.",
    )
    commands = parser.add_subparsers(required=True)

    new = commands.add_parser("new", help="create a key, printed once")
    new.add_argument("name", help="the owner, written to the log with each request")
    new.add_argument("--file", type=Path, help="the file of serve.keys_file, to add the key to")
    for limit in LIMITS:
        what, when = limit.split("_per_")
        of = " of prompts and answers" if what == "tokens" else ""
        new.add_argument(
            f"--{limit.replace('_', '-')}",
            type=int,
            help=f"{what}{of} in a {when}{' (UTC)' if when == 'day' else ''}; default: no limit",
        )
    new.add_argument("--expires-days", type=float, help="days that it is valid; default: for ever")
    new.add_argument(
        "--weight", type=float, default=1, help="share of the engine beside other keys; default: 1"
    )
    new.add_argument(
        "--priority", type=int, default=0, help="a higher one goes first in the queue; default: 0"
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
    new.set_defaults(command=_new)

    listing = commands.add_parser("list", help="show keys, their limits and what is left of them")
    listing.add_argument("--file", type=Path, required=True, help="the file of serve.keys_file")
    listing.add_argument("--usage", type=Path, help="the file of serve.usage_file, for today's use")
    listing.set_defaults(command=_list)

    rotate = commands.add_parser("rotate", help="give a key a new secret, printed once")
    rotate.add_argument("name")
    rotate.add_argument("--file", type=Path, required=True, help="the file of serve.keys_file")
    rotate.add_argument(
        "--overlap-hours",
        type=float,
        default=24,
        help="hours that the former secret stays valid; 0: none; default: 24",
    )
    rotate.add_argument("--expires-days", type=float, help="days that the new secret is valid")
    rotate.set_defaults(command=_rotate)

    revoke = commands.add_parser("revoke", help="remove a key: it is refused within a second")
    revoke.add_argument("name")
    revoke.add_argument("--file", type=Path, required=True, help="the file of serve.keys_file")
    revoke.set_defaults(command=_revoke)
    return parser


def _new(given: argparse.Namespace) -> None:
    secret = _secret()
    key = Key(
        name=given.name,
        sha256=digest(secret),
        expires=_in_days(given.expires_days),
        weight=given.weight,
        priority=given.priority,
        models=given.models,
        admin=given.admin,
        guardrails=given.guardrails,
        documents=given.documents,
        **{limit: getattr(given, limit) for limit in LIMITS},
    )
    if key.name == ENVIRONMENT:
        raise ConfigError(f"the name {key.name} is reserved for {API_KEY}: choose another")
    if given.file:
        with _changing(given.file, create=True) as keys:
            if key.name in {known.name for known in keys}:
                raise ConfigError(
                    f"{given.file} already has a key named {key.name}: choose another name, or "
                    f"`rotate {key.name}`"
                )
            keys.append(key)
    place = f"added to {given.file}" if given.file else f"add this to your keys file: {_line(key)}"
    _show(secret, place)


def _list(given: argparse.Namespace) -> None:
    usage = read_usage(given.usage) if given.usage else {}
    rows = [("name", "state", "expires", "limits", "today")]
    for key in read_keys(given.file):
        state = "expired" if key.has_expired() else "valid"
        if key.former and key.former.until > datetime.now(UTC):
            state += f", former secret until {_time(key.former.until)}"
        used = usage.get(key.name)
        rows.append(
            (
                key.name,
                state,
                _time(key.expires) if key.expires else "never",
                _limits(key),
                f"{used.requests} requests, {used.tokens} tokens" if used else "-",
            )
        )
    shown = [row if given.usage else row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _rotate(given: argparse.Namespace) -> None:
    if not 0 <= given.overlap_hours <= 24 * MOST_DAYS:
        raise ConfigError(f"--overlap-hours {given.overlap_hours:g}: give 0 or more hours")
    secret = _secret()
    with _changing(given.file) as keys:
        index = _index(keys, given.name, given.file)
        key = keys[index]
        until = datetime.now(UTC) + timedelta(hours=given.overlap_hours)
        if key.expires:
            until = min(until, key.expires)
        keys[index] = key.model_copy(
            update={
                "sha256": digest(secret),
                "former": Former(sha256=key.sha256, until=until) if given.overlap_hours else None,
                "expires": _in_days(given.expires_days),
            }
        )
    former = f"until {_time(until)}" if given.overlap_hours else "no longer"
    _show(secret, f"the former one is valid {former}")


def _revoke(given: argparse.Namespace) -> None:
    with _changing(given.file) as keys:
        del keys[_index(keys, given.name, given.file)]
    print(f"{given.name} is revoked", file=sys.stderr)


def _secret() -> str:
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def _show(secret: str, rest: str) -> None:
    print(secret)
    print(f"the key is not shown again; {rest}", file=sys.stderr)


def _index(keys: list[Key], name: str, file: Path) -> int:
    names = [key.name for key in keys]
    if name not in names:
        raise ConfigError(f"{file} has no key named {name}: it has {', '.join(names) or 'no keys'}")
    return names.index(name)


def _in_days(days: float | None) -> datetime | None:
    if days is None:
        return None
    if not 0 < days <= MOST_DAYS:
        raise ConfigError(f"--expires-days {days:g}: give more than 0 and at most {MOST_DAYS:g}")
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


@contextmanager
def _changing(file: Path, *, create: bool = False) -> Iterator[list[Key]]:
    """The file's keys, to change in the block. The file is replaced whole when the block ends.

    Two commands at a time take turns, and a reader never sees half a file.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    file = file.resolve()
    try:
        place = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _cannot_write(file, error) from error
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        keys = [] if create and not file.exists() else read_keys(file)
        yield keys
        _write(file, keys)
    finally:
        os.close(place)


def _write(file: Path, keys: list[Key]) -> None:
    text = "".join(f"{_line(key)}\n" for key in keys)
    try:
        # Only the owner can read it: digests reveal no key, but names and limits are private.
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "w") as stream:
                if file.exists():
                    status = file.stat()
                    os.fchmod(handle, status.st_mode & 0o777)
                    if os.geteuid() == 0:
                        os.fchown(handle, status.st_uid, status.st_gid)
                stream.write(text)
                stream.flush()
                os.fsync(handle)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise _cannot_write(file, error) from error


def _cannot_write(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{file} cannot be written ({error.strerror}): give another file")


def _limits(key: Key) -> str:
    found = [
        f"{value} {name.replace('_', ' ')}" for name in LIMITS if (value := getattr(key, name))
    ]
    found += [f"weight {key.weight:g}"] if key.weight != 1 else []
    found += [f"priority {key.priority}"] if key.priority else []
    found += [f"models {', '.join(key.models)}"] if key.models is not None else []
    found += [f"guardrails {', '.join(key.guardrails)}"] if key.guardrails is not None else []
    found += ["admin"] if key.admin else []
    return "; ".join(found) or "none"


def _line(key: Key) -> str:
    return key.model_dump_json(exclude_defaults=True)


def _time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit(main())
