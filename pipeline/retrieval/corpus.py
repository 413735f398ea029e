"""The documents that an index is made of: which files, and who may see each."""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.retrieval import IndexConfig
from pipeline.core.errors import DataError
from pipeline.data.documents import FORMATS

MOST = 1_000_000  # files; more is a slip of the hand


@dataclass(frozen=True)
class Source:
    """A document. name: path below index.folder. labels: those of the keys that may see it."""

    file: Path
    name: str
    labels: tuple[str, ...]


def sources(config: IndexConfig) -> list[Source]:
    """The documents by name; none if the settings name no folder.

    Raises:
        DataError: the folder does not exist, nothing matches, a file is of no known format or
            outside of the folder, or labels are given to no document.
    """
    folder = config.folder
    if folder is None:
        return []
    if not folder.is_dir():
        raise DataError(f"index.folder={folder} is not a folder: give the one with the documents")
    files = _files(config, folder)
    if not files:
        raise DataError(
            f"index.documents: nothing below {folder} matches {', '.join(config.documents)}"
        )
    found = []
    for name, file in files.items():
        if file.suffix.lower() not in FORMATS:
            raise DataError(
                f"{file} is no document of a known format ({', '.join(FORMATS)}): leave it out of "
                "index.documents"
            )
        labels = {
            label
            for glob, given in config.labels.items()
            for label in given
            if _matches(name, glob)
        }
        found.append(Source(file, name, tuple(sorted(labels))))
    for glob in config.labels:
        if not any(_matches(source.name, glob) for source in found):
            raise DataError(
                f"index.labels: no document matches {glob!r}, so everybody would see what it is "
                "meant for: correct it"
            )
    return found


def _files(config: IndexConfig, folder: Path) -> dict[str, Path]:
    root = folder.resolve()
    names: dict[str, Path] = {}
    for file in _matching(config, folder):
        if not file.resolve().is_relative_to(root):
            raise DataError(f"{file} is a link to outside of index.folder={folder}: remove it")
        names[file.relative_to(folder).as_posix()] = file
        if len(names) > MOST:
            raise DataError(f"index.folder={folder} has more than {MOST} documents: split it")
    return dict(sorted(names.items()))


def _matching(config: IndexConfig, folder: Path) -> Iterator[Path]:
    for glob in config.documents:
        try:
            yield from (file for file in folder.glob(glob) if file.is_file())
        except (ValueError, NotImplementedError, OSError) as error:
            raise DataError(f"index.documents: {glob!r}: {error}") from error


def _matches(name: str, glob: str) -> bool:
    """Whether a glob below the folder names a file; ** is any number of folders, none included."""
    return any(fnmatch.fnmatchcase(name, form) for form in {glob, glob.replace("**/", "")})
