"""Finds the data files that settings name."""

from pathlib import Path

from pipeline.core.errors import ConfigError, DataError
from pipeline.data.readers.table import reader_of


def find_files(folder: Path, patterns: tuple[str, ...], setting: str) -> list[Path]:
    """Files below a folder that match the globs: each once, in the order of patterns, then sorted.

    A folder that `datasets` saved counts as a file. A pattern that is the name of a file means that
    file, even if it has brackets or stars in it.

    Raises:
        ConfigError: a pattern is not a glob below the folder.
        DataError: a pattern matches no file, or a file of an unknown kind.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        for file in _matches(folder, pattern, setting):
            reader_of(file, setting)  # which refuses a file of an unknown kind
            found[file] = None
    return list(found)


def _matches(folder: Path, pattern: str, setting: str) -> list[Path]:
    try:
        exact = folder / pattern
        matches = [exact] if pattern and exact.exists() else sorted(folder.glob(pattern))
        files = [file for file in matches if file.is_file()]
        if not files:
            files = [file for file in matches if file.is_dir()]
    except (OSError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"{setting}: {pattern!r} must be a name or glob below {folder} ({error})"
        ) from error
    if not files:
        raise DataError(
            f"{setting}: no file in {folder} matches {pattern!r}: correct either of them"
        )
    return files


def size_of(file: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = file.iterdir() if file.is_dir() else [file]
    return sum(part.stat().st_size for part in files if part.is_file())
