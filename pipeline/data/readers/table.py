"""The kinds of files that can be read: the one table, and how a file's kind is found."""

from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.data.readers.arrow import ARROW, is_saved_dataset, splits_of
from pipeline.data.readers.delimited import DELIMITED
from pipeline.data.readers.document import DOCX, HTML, PDF
from pipeline.data.readers.json_array import JSON_ARRAY
from pipeline.data.readers.json_lines import JSON_LINES
from pipeline.data.readers.markdown import MARKDOWN, TEXT
from pipeline.data.readers.opening import COMPRESSIONS
from pipeline.data.readers.parquet import PARQUET
from pipeline.data.readers.record import Reader

_ROWS = (JSON_LINES, JSON_ARRAY, DELIMITED, PARQUET, ARROW)
_DOCUMENTS = (MARKDOWN, TEXT, HTML, PDF, DOCX)
READERS = {reader.name: reader for reader in (*_ROWS, *_DOCUMENTS)}
SUFFIXES = {suffix: reader for reader in READERS.values() for suffix in reader.suffixes}
# What to do with files of well-known other kinds.
_PICKLE = (
    "a pickle can run code when it is read, so none is: save the rows as Parquet or JSON lines"
)
_OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV in UTF-8"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".bin"), _PICKLE),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "unpack it, and name its files"),
    **dict.fromkeys((".bz2", ".xz", ".lz4"), "compress it with gzip or zstd, or not at all"),
    **dict.fromkeys((".yaml", ".yml"), "write it as JSON lines"),
    **dict.fromkeys((".db", ".sqlite"), "export the table as CSV"),
    ".doc": "save it as DOCX",
}


def suffix_of(file: Path) -> str:
    """The suffix that says what a file is: that before .gz or .zst, if it is compressed."""
    return (file.with_suffix("") if file.suffix.lower() in COMPRESSIONS else file).suffix.lower()


def reader_of(file: Path, setting: str) -> Reader:
    """The reader of a file, or of a folder that `datasets` saved.

    Raises:
        DataError: it is of another kind; the message says what to do.
    """
    if file.is_dir():
        if is_saved_dataset(file):
            return ARROW
        if splits := splits_of(file):
            raise DataError(
                f"{file} ({setting}) is a saved dataset with the splits {', '.join(splits)}: name "
                f"one of them, as {setting}=[{file.name}/{splits[0]}]"
            )
        raise DataError(
            f"{file} ({setting}) is a folder: name its files, as {setting}=[{file.name}/*.jsonl]"
        )
    reader = SUFFIXES.get(suffix_of(file))
    if reader is None:
        instead = _OTHERS.get(suffix_of(file)) or (
            f"rename it to end in {', '.join(SUFFIXES)}, according to its content"
        )
        raise DataError(f"{file} ({setting}) is of an unknown kind: {instead}")
    if file.suffix.lower() in COMPRESSIONS and not reader.compressed:
        raise DataError(
            f"{file} ({setting}): {reader.title} is read from files that are not compressed as a "
            "whole: decompress it"
        )
    return reader
