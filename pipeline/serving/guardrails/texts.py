"""The texts in the files that a configuration names, for its config.py."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError

HERE = "here:"  # begins the name of a file in the configuration's own folder


def folder_of(config: Any) -> Path:
    """The folder of a RailsConfig."""
    return Path(config.config_path)


def read_texts(config: Any, names: Sequence[str]) -> list[str]:
    """The texts of all files that globs name: of rows the user's turns, else the lines.

    Names are below the working folder, or below the configuration's after `here:`.

    Raises:
        ConfigError: a glob matches nothing, or a file cannot be read; names file and line.
    """
    found: list[str] = []
    for name in names:
        here = name.startswith(HERE)
        root = folder_of(config) if here else Path()
        pattern = name.removeprefix(HERE)
        files = [Path(pattern)] if Path(pattern).is_absolute() else sorted(root.glob(pattern))
        if not files:
            raise ConfigError(f"{folder_of(config)}: custom_data names {name}, which is no file")
        for file in files:
            found += _texts(file)
    return found


def _texts(file: Path) -> Iterator[str]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        if file.suffix != ".jsonl":
            yield line.strip()
            continue
        try:
            row = json.loads(line)
            turns = row.get("messages") or [{"role": "user", "content": _prompt(row)}]
            yield from (turn["content"] for turn in turns if turn["role"] == "user")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file}:{number}: not a row of a conversation") from error


def _prompt(row: dict[str, Any]) -> str:
    for name in ("prompt", "input", "text"):
        if isinstance(row.get(name), str):
            return str(row[name])
    raise KeyError("prompt")
